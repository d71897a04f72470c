"""What the operator permits rewards to do. It applies to every job and comes from the service's settings, never from a
request."""

from __future__ import annotations

from typing import Literal

import msgspec

SandboxLevel = Literal["limits", "filtered", "isolated"]
"""How strongly user code is contained, weakest first.

limits: a process of its own with limits on time, memory and output · filtered: the kernel also denies it the network,
writes outside its folder, and processes beyond its share · isolated: it also sees no other process, no network device
and none of the service's files (namespaces).
"""
SANDBOX_LEVELS: tuple[SandboxLevel, ...] = ("limits", "filtered", "isolated")


class RewardPermissions(msgspec.Struct, frozen=True, kw_only=True):
    """The permissions as plain values: they are sent to the processes that run rewards."""

    sandbox: SandboxLevel = "limits"
    """Weakest acceptable containment: user code is refused where the machine offers less."""
    hidden: tuple[str, ...] = ()
    """Folders with the service's data: user code cannot see them, even if its own file lies beside them."""
    folders: tuple[str, ...] | None = None
    """Folders in which the file of a `function` must lie, at any depth; `None`: anywhere."""
    processes: int = 64
    """Processes for user code that one grader may use, its components included."""
    max_workers: int = 64
    """Upper limit of the processes that are started for one component, however many it asks for: a check without
    completions needs only one."""
    hosts: tuple[str, ...] = ()
    """`host` or `host:port` that HTTP rewards may call; none by default."""
    code: str | None = None
    """Folder with the code that the job's functions were submitted with; None outside a job."""
    judge_url: str | None = None
    """Base URL, with `/v1`, of the server in OpenAI's protocol that model graders call."""
    judge_key: str | None = None
    """Bearer key of that server."""

    def __post_init__(self) -> None:
        """Keep the key out of the logs of every process that has these permissions."""
        # Imported here because a host process imports this module for its names alone, and must start fast.
        from ..redaction import conceal

        conceal(self.judge_key)

    def __repr__(self) -> str:
        """Hides the key: a repr may end up in a log."""
        key = None if self.judge_key is None else "***"
        judge = f"judge_url={self.judge_url!r}, judge_key={key!r}"
        return f"RewardPermissions({self.sandbox!r}, hosts={self.hosts!r}, {judge})"
