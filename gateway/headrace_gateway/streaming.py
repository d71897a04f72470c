"""Streams that follow a job: from any point of its past, on as it goes, to its end.

Invariant: a stream ends after the last entry, never before: the job has ended, and a whole second brought nothing new.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection

from headrace_core.history import KINDS, Entry, Kind
from headrace_core.jobs import ENDED, JobStore

PING_SECONDS = 10
_QUIET_SECONDS = 1.0
_PAGE = 500


async def follow(
    jobs: JobStore, job_id: str, number: int, kinds: Collection[Kind] = KINDS
) -> AsyncIterator[Entry | None]:
    """Entries as they come; None about once a second, busy or quiet."""
    paused = time.monotonic()
    while True:
        found = await jobs.history.after(job_id, number, _PAGE, kinds, block=_QUIET_SECONDS)
        for entry in found:
            number = entry.number
            yield entry
        if not found and (await jobs.get(job_id)).status in ENDED:
            return
        if time.monotonic() - paused >= _QUIET_SECONDS:
            yield None
            paused = time.monotonic()
