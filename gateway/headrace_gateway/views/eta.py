"""Estimates when a running job will end, from its recent pace."""

from __future__ import annotations

import statistics
from itertools import pairwise

from headrace_core.types.job import Job


def estimated_finish(job: Job) -> float | None:
    """Unix seconds; None while the job does not run or has no pace yet. A pause between two steps does not count."""
    if job.status != "running" or len(job.pace) < 2:
        return None
    a_step = statistics.median((t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in pairwise(job.pace))
    newest, then = job.pace[-1]
    return then + a_step * (job.total_steps - newest)
