"""One subscriber of a job's stream: the batches that its connection has not sent yet. See `job_streams` for a
picture."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace_core.jobs.history import HistoryEntry

from .stream_formats import StreamFormat

MAX_WAITING = 32
"""Most batches that wait for a subscriber. One with more drops them, and reads the gap from Redis."""


def encode_entries(stream_format: StreamFormat, job_id: str, entries: Iterable[HistoryEntry]) -> bytes:
    """The entries that the format contains, as server-sent events."""
    return b"".join(stream_format.encode(job_id, entry) for entry in entries if entry.kind in stream_format.kinds)


@dataclass(eq=False)
class Batch:
    """Consecutive entries of a job that begin after the number `after`; at least one."""

    job_id: str
    after: int
    entries: list[HistoryEntry]
    _encoded: dict[int, bytes] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Number of the last entry."""
        return self.entries[-1].number

    def encoded(self, stream_format: StreamFormat, number: int) -> bytes:
        """The entries after `number`, encoded. The encoding of the whole batch is shared by all subscribers."""
        if number > self.after:
            return encode_entries(stream_format, self.job_id, (e for e in self.entries if e.number > number))
        if id(stream_format) not in self._encoded:
            self._encoded[id(stream_format)] = encode_entries(stream_format, self.job_id, self.entries)
        return self._encoded[id(stream_format)]


class Subscriber:
    """Collects batches, states and other pieces from a stream; `take` returns what to send next."""

    def __init__(self, stream_format: StreamFormat, number: int) -> None:
        self.number = number
        """Number of the last entry that was sent."""
        self.ended = False
        self.stream_format = stream_format
        self._batches: list[Batch] = []
        self._state = b""
        self._other = b""
        self._wake = asyncio.Event()

    def add_batch(self, batch: Batch) -> None:
        """Add a batch to send. If too many wait, drops the earlier ones, which are then read from Redis."""
        if len(self._batches) >= MAX_WAITING:
            self._batches.clear()
        self._batches.append(batch)
        self._wake.set()

    def state(self, state: bytes) -> None:
        """Set the state to send; it replaces a state that is not sent yet."""
        if self.stream_format.states:
            self._state = state
            self._wake.set()

    def newest_state(self) -> bytes:
        """Take the state that waits, to send it before everything else."""
        state, self._state = self._state, b""
        return state

    def ping(self, comment: bytes) -> None:
        """Set a comment to send with the next piece."""
        self._other = comment
        self._wake.set()

    def end(self, last: bytes) -> None:
        """End the subscriber; `last` is sent after everything else."""
        self.ended = True
        self._other = last
        self._wake.set()

    async def wait(self) -> None:
        """Wait until there is something to take."""
        await self._wake.wait()
        self._wake.clear()

    @property
    def gap_end(self) -> int | None:
        """The number up to which entries must be read from Redis first; None if the waiting batches follow directly
        what was sent."""
        waiting = [b for b in self._batches if b.last > self.number]
        return waiting[0].after if waiting and waiting[0].after > self.number else None

    def take(self) -> bytes:
        """Take everything that waits, as one piece: entries, the state, then a comment or the end."""
        pieces = []
        for batch in self._batches:
            if batch.last > self.number:
                pieces.append(batch.encoded(self.stream_format, self.number))
                self.number = batch.last
        pieces += (self._state, self._other)
        self._batches, self._state, self._other = [], b"", b""
        return b"".join(pieces)
