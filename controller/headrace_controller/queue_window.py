"""Which of the queued jobs get a controller: all that fit the free resources, or, if none fits, the oldest one.

A controller is a process of more than 100 MB, so the jobs behind these wait as a record in Redis alone.

    oldest ────────────────────────────────────────────────► newest
    fit the free resources     │ wait without a controller
    the next one, once all     │
    that fit have been placed  │ waits without a controller

Jobs are placed in the order of their creation. Ray serves requests in the order of their arrival, and a controller
takes a while to send its request; a job that does not fit yet gets no controller beside those that fit, because it
could be served before them. A job that fits no node of the present cluster (nodes may still join, or return) does not
block the others: it gets a controller, which reports the problem. There are at most `MAX_UNPLACEABLE` of these at a
time.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_core.planning.resource_plan import Plan

MAX_UNPLACEABLE = 4


class QueueWindow:
    """Selects the jobs that get a controller: call `takes` for each queued job, oldest first, until `full`.

    `free`: the cluster's free resources.
    """

    def __init__(self, free: Mapping[str, float]) -> None:
        self._free = dict(free)
        self._unplaceable = 0
        self._fits_one = False
        """Whether a job that still waits for its placement fits the free resources."""
        self.full = False

    def takes(self, plan: Plan | None) -> bool:
        """Whether the next job gets a controller. `plan`: its resources; None if no node of the cluster can take it."""
        if plan is None:
            self._unplaceable += 1
            return self._unplaceable <= MAX_UNPLACEABLE
        needed = plan.total
        if any(self._free.get(name, 0.0) < amount for name, amount in needed.items()):
            self.full = True
            return not self._fits_one
        self._fits_one = True
        for name, amount in needed.items():
            self._free[name] = self._free.get(name, 0.0) - amount
        return True
