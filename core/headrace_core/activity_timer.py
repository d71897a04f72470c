"""Where a worker's time went: every second belongs to exactly one activity."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable


class ActivityTimer:
    """Sums seconds by activity. The sum over all activities is the time since construction.

    `activity` is the first one; `clock` returns seconds and never goes back.
    """

    def __init__(self, activity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._since = clock()
        self._activity = activity
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def switch(self, activity: str) -> None:
        """End the current activity and begin `activity`."""
        now = self._clock()
        self._seconds[self._activity] += now - self._since
        self._since, self._activity = now, activity

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each activity so far, the current one included."""
        self.switch(self._activity)
        return dict(self._seconds)

    @property
    def uptime(self) -> float:
        """Seconds since construction."""
        return self._clock() - self._began
