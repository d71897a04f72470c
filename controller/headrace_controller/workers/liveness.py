"""How long something has not moved, or a process not answered, by a clock that stands still with whoever looks.

A controller that was stopped for a minute, or waited for Redis, must not take its own standstill for that of others:
the time between two looks counts for two seconds at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ray.exceptions import RayError

LONGEST_LOOK = 2.0
"""Seconds that one look counts for, at most."""


class StallTimer:
    """Seconds for which what is looked at has been the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self._seen: object = None
        self.seconds = 0.0

    def look(self, now: object) -> float:
        """What is to be seen now; returns for how long it has been so."""
        time_now = self._clock()
        passed, self._looked = min(time_now - self._looked, LONGEST_LOOK), time_now
        self.seconds = self.seconds + passed if now == self._seen else 0.0
        self._seen = now
        return self.seconds

    def begin(self) -> None:
        """Start, or restart, the count."""
        self.seconds, self._looked = 0.0, self._clock()


class PingMonitor:
    """Whether a process answers: it is asked again whenever it has."""

    def __init__(self, ask: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._asked: asyncio.Task[None] | None = None
        self._answers = 0
        self._still = StallTimer(clock)

    def silent(self) -> float:
        """Seconds for which it has owed an answer, as far as somebody looked."""
        if self._asked is None or self._asked.done():
            self._answers += 1
            self._asked = asyncio.create_task(self._answered(), name="pulse")
        return self._still.look(self._answers)

    def stop(self) -> None:
        """Ask no more."""
        if self._asked is not None:
            self._asked.cancel()

    async def _answered(self) -> None:
        with suppress(RayError):  # it died: whoever waits for its work is told, and by what
            await self._ask()
