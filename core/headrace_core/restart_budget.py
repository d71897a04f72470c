"""How often, and after what delay, a failed worker or service component is restarted.

died ─► 1 s ─► died ─► 2 s ─► died ─► 4 s … at most 30 s … ─► all `max_restarts` used: None
  └── it had worked for `window` seconds: all restarts are available again
"""

from __future__ import annotations

from dataclasses import dataclass

from .backoff import delay_after

FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart that is due: the `number`th of at most `of`, after `delay` seconds."""

    number: int
    of: int
    delay: float


class RestartBudget:
    """The restarts available to one worker under one controller, or to one component of the service.

    A new controller or service begins with a full budget. `window` and `first` are seconds.
    """

    def __init__(self, max_restarts: int, window: float, first: float = FIRST_DELAY_SECONDS) -> None:
        self._max_restarts, self._window, self._first = max_restarts, window, first
        self._used = 0

    def next(self, worked: float) -> Restart | None:
        """The restart due after a failure, `worked` seconds after the last start; None: the budget is used up."""
        if worked >= self._window:
            self._used = 0
        if self._used >= self._max_restarts:
            return None
        self._used += 1
        return Restart(self._used, self._max_restarts, delay_after(self._used, self._first, MAX_DELAY_SECONDS))
