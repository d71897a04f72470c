"""Errors that pause a job instead of failing it: the job shows the reason, and a resume continues from there.

JobCannotContinue      code, message, who
├── RestartsExhausted  worker_failed: a worker used up its restarts
├── Stalled            stalled: no progress, also after workers were restarted
└── NothingLearned     nothing_learned (`idle_steps`): too many steps in a row left the policy unchanged
DiskFull, RedisFull of `headrace_core.errors` pause a job too: disk_full, redis_full
"""

from __future__ import annotations

from headrace_core.errors import DiskFull, HeadraceError, RedisFull


class JobCannotContinue(HeadraceError):
    """`who`: the name of the worker that cannot continue, or `job`."""

    def __init__(self, message: str, who: str = "job", *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.who = who


class RestartsExhausted(JobCannotContinue):
    """A worker failed more often than it may be restarted; the message ends with the last reason."""

    code = "worker_failed"


class Stalled(JobCannotContinue):
    """No progress, even after the workers that the others waited for were restarted. The message says which worker
    waits for what."""

    code = "stalled"


OUT_OF_SPACE = (DiskFull, RedisFull)
"""Errors that no restart of a worker resolves: an operator frees space, or space becomes free with time."""


def cannot_go_on(error: HeadraceError, who: str) -> JobCannotContinue:
    """`error`, one of `OUT_OF_SPACE`, as the error that pauses a job."""
    return JobCannotContinue(error.message, who, code=error.code)
