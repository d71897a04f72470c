"""Which of the queued jobs get a controller: those that have room now, or else the next one. A controller is a process
of more than 100 MB; the jobs behind those cost nothing but their record.

    oldest ──────────────────────────────────────────────► newest
    fits what is free        │ waits without a controller
    the next one, once all   │
    that fit have been placed│ waits without a controller

Jobs are placed in the order in which they were made: Ray serves whoever asks first for what there is, and a controller
takes a while to ask, so that one beside those that fit could be served in their place. One that fits no node as they
are now (nodes may still come, or come back) keeps no other from its place, and has a controller, which says so; of
such, `MISFITS` at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

from .placement import Plan

MISFITS = 4


class QueueWindow:
    """Asked of each queued job, oldest first, until it is `full`. `free`: the cluster's resources that nobody holds."""

    def __init__(self, free: Mapping[str, float]) -> None:
        self._free = dict(free)
        self._misfits = 0
        self._fitting = False
        """Whether one fits that still waits."""
        self.full = False

    def takes(self, plan: Plan | None) -> bool:
        """Whether the next job gets a controller; `plan` is None where no node takes it."""
        if plan is None:
            self._misfits += 1
            return self._misfits <= MISFITS
        needed = plan.total
        if any(self._free.get(name, 0.0) < amount for name, amount in needed.items()):
            self.full = True
            return not self._fitting
        self._fitting = True
        for name, amount in needed.items():
            self._free[name] = self._free.get(name, 0.0) - amount
        return True
