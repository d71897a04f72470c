"""How long to wait before what failed is tried again: an exponential delay with an upper limit, with or without jitter.

Jitter keeps clients that failed at the same moment from coming back at the same moment. A supervisor that restarts a
part of its own needs none.
"""

from __future__ import annotations

import random

_MAX_DOUBLINGS = 60
"""More would overflow a float after a long outage; no delay needs as many to reach its limit."""


def delay_after(failures: int, first: float, limit: float) -> float:
    """Seconds to wait after so many failures in a row: `first` after one, doubled with each more up to `limit`."""
    return min(limit, first * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))


def jittered_delay_after(failures: int, first: float, limit: float) -> float:
    """The same, times a factor between 0.5 and 1, drawn anew each time."""
    return delay_after(failures, first, limit) * random.uniform(0.5, 1.0)
