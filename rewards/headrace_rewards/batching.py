"""Sends samples of several groups that arrive at nearly the same time in one batch.

submit(group) ─► queue ─► collect up to `size` samples, or those that arrive within 10 ms ─► send ─► outcomes
                             └ of `concurrency` senders one collects at a time, while the others send
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from headrace_core.errors import InvalidState
from headrace_core.protocols.grader_check import Failure, Outcome

from .protocol import Sample

_LINGER_SECONDS = 0.01
_CLOSED = Failure("unavailable", "the reward was closed")

Entry = tuple[Sample, asyncio.Future[Outcome]]


class Batcher:
    """Batches calls of `send`, which takes at most `size` samples and returns one outcome per sample, in order."""

    def __init__(
        self, send: Callable[[list[Sample]], Awaitable[list[Outcome]]], *, size: int, concurrency: int
    ) -> None:
        self._send = send
        self._size = size
        self._concurrency = concurrency
        self._queue: asyncio.Queue[Entry] = asyncio.Queue()
        self._collecting = asyncio.Lock()
        self._senders: list[asyncio.Task[None]] = []
        self._waiting: set[asyncio.Future[Outcome]] = set()
        self._closed = False

    def start(self) -> None:
        """Start the senders; needs a running event loop."""
        self._senders = [
            asyncio.create_task(self._send_forever(), name=f"reward-sender-{number}")
            for number in range(self._concurrency)
        ]

    async def submit(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, in order. An exception of `send` is raised in every call with samples in that
        batch."""
        if self._closed:
            return [_CLOSED] * len(samples)
        if not self._senders:
            raise InvalidState("the reward was not started")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in samples]
        self._waiting.update(futures)
        for entry in zip(samples, futures, strict=True):
            self._queue.put_nowait(entry)
        try:
            return list(await asyncio.gather(*futures))
        finally:
            self._waiting.difference_update(futures)

    async def close(self) -> None:
        """Stop the senders; pending calls return `Failure("unavailable")`. Idempotent."""
        self._closed = True
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        for future in self._waiting:
            if not future.done():
                future.set_result(_CLOSED)

    async def _send_forever(self) -> None:
        while True:
            async with self._collecting:
                batch = await self._collect()
            if batch:
                await self._send_batch(batch)

    async def _collect(self) -> list[Entry]:
        """The next batch: at most `size` entries, without those whose caller was cancelled."""
        batch = [await self._queue.get()]
        self._drain(batch)
        if len(batch) < self._size:
            await asyncio.sleep(_LINGER_SECONDS)
            self._drain(batch)
        return [(sample, future) for sample, future in batch if not future.done()]

    def _drain(self, batch: list[Entry]) -> None:
        while len(batch) < self._size and not self._queue.empty():
            batch.append(self._queue.get_nowait())

    async def _send_batch(self, batch: list[Entry]) -> None:
        samples = [sample for sample, _ in batch]
        try:
            outcomes = await self._send(samples)
        except Exception as fault:  # an error of the service: `send` returns the server's errors as outcomes
            for _, future in batch:
                if not future.done():
                    future.set_exception(fault)
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
