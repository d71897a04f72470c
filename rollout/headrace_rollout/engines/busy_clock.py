"""Measures how long an engine was busy: at least one request in flight, and generation not paused. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Call `enter` and `leave` around each request, and `paused` around a pause. `now` gives monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._in_flight = 0
        self._pauses = 0
        self._seconds = 0.0
        self._since = now()

    @property
    def seconds(self) -> float:
        """Busy seconds so far."""
        with self._lock:
            self._advance()
            return self._seconds

    def enter(self) -> None:
        """One more request is in flight."""
        with self._lock:
            self._advance()
            self._in_flight += 1

    def leave(self) -> None:
        """One request has ended."""
        with self._lock:
            self._advance()
            self._in_flight -= 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which no token can be sampled, so that the clock stands still."""
        with self._lock:
            self._advance()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self._pauses -= 1

    def _advance(self) -> None:
        now = self._now()
        if self._in_flight > 0 and self._pauses == 0:
            self._seconds += now - self._since
        self._since = now
