"""The clock that a part reads: the machine's own, or one that a simulation sets."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks, as the module `time` has them."""

    def time(self) -> float:
        """Unix seconds: the wall clock, which may be set forward or back."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment: for durations. It never goes back."""
        ...


class SystemClock:
    """The machine's."""

    def time(self) -> float:
        """See `Clock`."""
        return time.time()

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()


SYSTEM_CLOCK = SystemClock()
