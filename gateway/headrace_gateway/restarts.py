"""How often a worker that failed is started again, and after what time.

died ─► 1 s ─► died ─► 2 s ─► died ─► 4 s … at most 30 s … ─► `most` used up: None
  └── it had worked for `window` seconds: as if it had never failed
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Restart:
    """One that is due: the `number`th of at most `of`, after `delay` seconds."""

    number: int
    of: int
    delay: float


class Restarts:
    """Those of one worker under one controller; a job that is resumed has another controller, and all of them again."""

    def __init__(self, most: int, window: float) -> None:
        self._most, self._window = most, window
        self._used = 0

    def next(self, worked: float) -> Restart | None:
        """The restart of a worker that failed after it had worked for so many seconds; None: all are used up."""
        if worked >= self._window:
            self._used = 0
        if self._used >= self._most:
            return None
        delay = min(FIRST_SECONDS * 2.0 ** min(self._used, 10), LONGEST_SECONDS)
        self._used += 1
        return Restart(self._used, self._most, delay)
