"""When a running job will end, if it goes on as it has lately."""

from __future__ import annotations

from headrace_core.jobs import Job, JobStore

_LATELY = 300
"""Entries of the metrics stream that are looked at."""


async def estimated_finish(jobs: JobStore, job: Job) -> float | None:
    """Unix seconds; None while the job does not run or has no pace yet."""
    if job.status != "running":
        return None
    steps = [data for kind, data in await jobs.newest_metrics(job.id, _LATELY) if kind == "step"]
    if len(steps) < 2:
        return None
    newest, oldest = steps[0], steps[-1]
    if newest["step"] <= oldest["step"]:  # a replaced learner repeats steps
        return None
    pace = (newest["time"] - oldest["time"]) / (newest["step"] - oldest["step"])
    return float(newest["time"] + pace * (job.total_steps - newest["step"]))
