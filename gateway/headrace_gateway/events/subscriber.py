"""One connection's part of a followed job: the few batches it has not sent yet. See job_streams.py for the picture."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace_core.jobs.history import HistoryEntry

from .stream_formats import StreamFormat

WAITING = 32
"""Batches that wait for a subscriber; with more, it reads what it missed from Redis."""


def encode_entries(stream_format: StreamFormat, job_id: str, entries: Iterable[HistoryEntry]) -> bytes:
    """Those entries that the format carries, as server-sent events."""
    return b"".join(stream_format.encode(job_id, entry) for entry in entries if entry.kind in stream_format.kinds)


@dataclass(eq=False)
class Batch:
    """All entries of a job from the number after `after` on, in order; at least one."""

    job_id: str
    after: int
    entries: list[HistoryEntry]
    _encoded: dict[int, bytes] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Number of the last entry."""
        return self.entries[-1].number

    def encoded(self, stream_format: StreamFormat, number: int) -> bytes:
        """Those after `number`; encoded once for everybody who wants them all."""
        if number > self.after:
            return encode_entries(stream_format, self.job_id, (e for e in self.entries if e.number > number))
        if id(stream_format) not in self._encoded:
            self._encoded[id(stream_format)] = encode_entries(stream_format, self.job_id, self.entries)
        return self._encoded[id(stream_format)]


class Subscriber:
    """Handed batches, states and other pieces by a stream; `take` gives what is to be sent next."""

    def __init__(self, stream_format: StreamFormat, number: int) -> None:
        self.number = number
        """Everything up to here is sent."""
        self.ended = False
        self.stream_format = stream_format
        self._batches: list[Batch] = []
        self._state = b""
        self._other = b""
        self._wake = asyncio.Event()

    def hand(self, batch: Batch) -> None:
        """To be sent; where too many wait, those before are left to be read from Redis."""
        if len(self._batches) >= WAITING:
            self._batches.clear()
        self._batches.append(batch)
        self._wake.set()

    def state(self, state: bytes) -> None:
        """To be sent, unless a newer one comes before."""
        if self.stream_format.states:
            self._state = state
            self._wake.set()

    def newest_state(self) -> bytes:
        """The state that waits, to be sent before all else."""
        state, self._state = self._state, b""
        return state

    def ping(self, comment: bytes) -> None:
        """To be sent where nothing else is."""
        self._other = comment
        self._wake.set()

    def end(self, last: bytes) -> None:
        """Nothing comes any more but `last`."""
        self.ended = True
        self._other = last
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to take."""
        await self._wake.wait()
        self._wake.clear()

    @property
    def missed_to(self) -> int | None:
        """The number up to which the past has to be read first; None where what waits follows what was sent."""
        waiting = [b for b in self._batches if b.last > self.number]
        return waiting[0].after if waiting and waiting[0].after > self.number else None

    def take(self) -> bytes:
        """All that waits, as one piece: entries, then the state, then what ends."""
        pieces = []
        for batch in self._batches:
            if batch.last > self.number:
                pieces.append(batch.encoded(self.stream_format, self.number))
                self.number = batch.last
        pieces += (self._state, self._other)
        self._batches, self._state, self._other = [], b"", b""
        return b"".join(pieces)
