"""What ends the work on a job but not the job: it pauses with the reason, and a resume goes on from there.

CannotGoOn          code, message, who
├── GaveUp          worker_failed: a worker used up its restarts
├── Stalled         stalled: nothing moved, whatever was tried
└── NothingLearned  nothing_learned (`idle_steps`): step after step, and the policy stays as it was
DiskFull, RedisFull of `headrace_core.errors`: disk_full, redis_full
"""

from __future__ import annotations

from headrace_core.errors import DiskFull, HeadraceError, RedisFull


class JobCannotContinue(HeadraceError):
    """`who`: the worker that cannot, or `job`."""

    def __init__(self, message: str, who: str = "job", *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.who = who


class RestartsExhausted(JobCannotContinue):
    """A worker failed more often than it may be restarted; the message ends with the last reason."""

    code = "worker_failed"


class Stalled(JobCannotContinue):
    """No progress, although whom the others waited for was started again; the message says who waits for whom."""

    code = "stalled"


OUT_OF_SPACE = (DiskFull, RedisFull)
"""What no restart of a worker mends, and time or an operator does."""


def cannot_go_on(error: HeadraceError, who: str) -> JobCannotContinue:
    """`error`, one of `OUT_OF_SPACE`, as the reason why a job pauses."""
    return JobCannotContinue(error.message, who, code=error.code)
