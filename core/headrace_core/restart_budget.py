"""How often what failed is started again, a worker or a part of the service, and after what time.

died ─► 1 s ─► died ─► 2 s ─► died ─► 4 s … at most 30 s … ─► `most` used up: None
  └── it had worked for `window` seconds: as if it had never failed
"""

from __future__ import annotations

from dataclasses import dataclass

from .backoff import delay_after

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Restart:
    """One that is due: the `number`th of at most `of`, after `delay` seconds."""

    number: int
    of: int
    delay: float


class RestartBudget:
    """Those of one worker under one controller, or of one part under its service: another one has all of them again."""

    def __init__(self, most: int, window: float, first: float = FIRST_SECONDS) -> None:
        self._most, self._window, self._first = most, window, first
        self._used = 0

    def next(self, worked: float) -> Restart | None:
        """The restart of one that failed after it had worked for so many seconds; None: all are used up."""
        if worked >= self._window:
            self._used = 0
        if self._used >= self._most:
            return None
        self._used += 1
        return Restart(self._used, self._most, delay_after(self._used, self._first, LONGEST_SECONDS))
