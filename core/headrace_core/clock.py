"""The clock that a component reads: the machine's, or the virtual one of a simulation."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall clock and monotonic clock, with the signatures of the module `time`."""

    def time(self) -> float:
        """Unix seconds of the wall clock, which may be set forward or back."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, to measure durations. Never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """See `Clock`."""
        return time.time()

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()


SYSTEM_CLOCK = SystemClock()
