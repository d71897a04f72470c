"""Measures how long a value has not changed, or a process has not answered, in time during which somebody observed.

A controller that was itself stopped for a minute, or waited for Redis, must not count that minute against its workers:
the time between two observations counts as two seconds at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ray.exceptions import RayError

MAX_COUNTED_SECONDS = 2.0
"""The most that the time between two observations counts."""


class StallTimer:
    """Counts the seconds for which an observed value has not changed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._observed_at = clock()
        self._last_value: object = None
        self.seconds = 0.0

    def observe(self, value: object) -> float:
        """Pass the present value; returns the seconds since it last changed."""
        now = self._clock()
        passed, self._observed_at = min(now - self._observed_at, MAX_COUNTED_SECONDS), now
        self.seconds = self.seconds + passed if value == self._last_value else 0.0
        self._last_value = value
        return self.seconds

    def begin(self) -> None:
        """Start the count again at 0."""
        self.seconds, self._observed_at = 0.0, self._clock()


class PingMonitor:
    """Pings a process, one ping at a time, and measures how long the pending one has not been answered."""

    def __init__(self, ping: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
        self._ping = ping
        self._pending: asyncio.Task[None] | None = None
        self._answers = 0
        self._timer = StallTimer(clock)

    def silent(self) -> float:
        """Seconds for which the pending ping has had no answer; sends a new ping if there is an answer."""
        if self._pending is None or self._pending.done():
            self._answers += 1
            self._pending = asyncio.create_task(self._ping_once(), name="pulse")
        return self._timer.observe(self._answers)

    def stop(self) -> None:
        """Cancel the pending ping."""
        if self._pending is not None:
            self._pending.cancel()

    async def _ping_once(self) -> None:
        with suppress(RayError):  # the process died: the call that waits for its work raises the same error
            await self._ping()
