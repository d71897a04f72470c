"""What the operator lets rewards do: it binds every job, and comes from the service's settings, not from a request."""

from __future__ import annotations

from typing import Literal

import msgspec

SandboxLevel = Literal["limits", "filtered", "isolated"]
"""How well user code is held, weakest first.

limits: a process of its own with limits on time, memory and output · filtered: the kernel also refuses it network,
writes outside its folder, and processes beyond its share · isolated: it also sees no other process, no network device
and none of the service's files (namespaces).
"""
SANDBOX_LEVELS: tuple[SandboxLevel, ...] = ("limits", "filtered", "isolated")


class RewardPermissions(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values: it crosses process borders."""

    sandbox: SandboxLevel = "limits"
    """User code is refused where the machine offers less than this."""
    hidden: tuple[str, ...] = ()
    """Folders that user code sees nothing of, though its file lies beside them: the service's data."""
    folders: tuple[str, ...] | None = None
    """In which the file of a `function` must lie, at any depth; `None`: anywhere."""
    processes: int = 64
    """Processes for user code that one grader, with those it holds, may ask for."""
    most_workers: int = 64
    """Of those that one part asks for, no more are started: a check without completions takes one."""
    hosts: tuple[str, ...] = ()
    """`host` or `host:port` that HTTP rewards may be asked at; none by default."""
    code: str | None = None
    """Folder of the code that the job's functions were submitted with; outside of a job there is none."""
    judge_url: str | None = None
    """Base URL of the server in OpenAI's protocol that model graders ask, with `/v1`."""
    judge_key: str | None = None
    """Its bearer key."""

    def __post_init__(self) -> None:
        """Whatever process has the rules shows the key in no log."""
        from ..redaction import conceal  # a host process needs this module's names alone, and starts fast

        conceal(self.judge_key)

    def __repr__(self) -> str:
        """Without the key: what is printed may be logged."""
        key = None if self.judge_key is None else "***"
        return f"RewardRules({self.sandbox!r}, hosts={self.hosts!r}, judge_url={self.judge_url!r}, judge_key={key!r})"
