"""How many of a kind of work one gateway does at a time; others wait for their turn, a limited time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from headrace_core.errors import TimedOut


class Places:
    """Of one kind of work."""

    def __init__(self, count: int, seconds: float, busy: str) -> None:
        """`seconds`: how long one waits for a place; `busy`: what the others do meanwhile, with their number."""
        self._places = asyncio.Semaphore(count)
        self._seconds = seconds
        self._busy = busy

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a place. Raises `TimedOut` where none came free in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise TimedOut(
                f"{self._busy}, and none ended within {self._seconds:g} s: ask again", retry_after=10
            ) from error
        try:
            yield
        finally:
            self._places.release()
