"""Limits how many tasks of a kind a gateway runs at the same time; the others wait, for a limited time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from headrace_core.errors import TimedOut, Unavailable


class ProcessSlots:
    """The slots of one kind of task."""

    def __init__(self, count: int, seconds: float, busy: str, error: type[Unavailable] = TimedOut) -> None:
        """`seconds`: longest wait for a slot; `busy`: what the others are doing, for the message of `error`."""
        self._semaphore = asyncio.Semaphore(count)
        self._seconds = seconds
        self._busy, self._error = busy, error

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot. Raises `error` if none becomes free in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._semaphore.acquire()
        except TimeoutError as error:
            message = f"{self._busy}, and none ended within {self._seconds:g} s: ask again"
            raise self._error(message, retry_after=10) from error
        try:
            yield
        finally:
            self._semaphore.release()
