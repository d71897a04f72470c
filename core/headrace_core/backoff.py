"""Exponential backoff with an upper limit, with or without jitter.

Jitter keeps clients that failed at the same moment from retrying at the same moment. A supervisor that restarts its own
component needs none.
"""

from __future__ import annotations

import random

_MAX_DOUBLINGS = 60
"""Caps the exponent, which would overflow a float after a long outage. Every delay reaches its limit before."""


def delay_after(failures: int, first: float, limit: float) -> float:
    """Seconds to wait after `failures` (≥ 1) failures in a row: `first` after one, then doubled up to `limit`."""
    return min(limit, first * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))


def jittered_delay_after(failures: int, first: float, limit: float) -> float:
    """`delay_after`, multiplied by a random factor between 0.5 and 1."""
    return delay_after(failures, first, limit) * random.uniform(0.5, 1.0)
