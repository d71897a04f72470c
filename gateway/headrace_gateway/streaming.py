"""Streams that follow a job: from any point of its past, on as it goes, to its end.

Invariant: a stream ends after the last entry, never before: the job has ended, and a whole second brought nothing new.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from headrace_core.errors import InvalidRequest
from headrace_core.jobs import ENDED, JobStore

PING_SECONDS = 10
_QUIET_SECONDS = 1.0
_STREAM_ID = re.compile(r"\d+(-\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a job's `events` or `metrics` stream."""

    stream: str
    id: str
    fields: dict[bytes, bytes]


def stream_id(text: str | None, param: str = "Last-Event-ID") -> str:
    """The id of an entry as a client gave it back; '0' (from the beginning) for none. Raises `InvalidRequest`."""
    if text is None:
        return "0"
    if not _STREAM_ID.fullmatch(text):
        raise InvalidRequest(f"{param}: {text!r} is not the id of an entry of this stream", param=param)
    return text


async def follow(jobs: JobStore, job_id: str, events_after: str, metrics_after: str) -> AsyncIterator[Entry | None]:
    """Entries as they come; None about once a second, busy or quiet."""
    paused = time.monotonic()
    async for found in jobs.follow(job_id, events_after, metrics_after, block=_QUIET_SECONDS):
        if found is not None:
            yield Entry(*found)
        elif (await jobs.get(job_id)).status in ENDED:
            return
        if time.monotonic() - paused >= _QUIET_SECONDS:
            yield None
            paused = time.monotonic()
