"""A job's workers as response objects, derived from their heartbeats, drains, and the time since the last heartbeat."""

from __future__ import annotations

import time
from typing import Literal

from redis.asyncio import Redis

from headrace_core.errors import NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.worker_drains import Drain, WorkerDrains
from headrace_core.protocols.worker import LEARNER_NAME, rollout_name
from headrace_core.types.job import Job
from headrace_core.types.metrics import WorkerMetrics

from ..schemas.control import WorkerObject, WorkerStatus

LOST_SECONDS = 15.0
"""A worker beats every two seconds; one silent for so long is lost."""


async def workers(redis: Redis, jobs: JobStore, job: Job, start_timeout: float) -> list[WorkerObject]:
    """All of them, those too that have not been heard of; the learner first."""
    beats = {beat.worker: beat for beat in await jobs.workers(job.id)}
    drains = await WorkerDrains(redis, job.id).all()
    version, _ = await Ledger(redis, job.id).newest()
    return [
        _shown(name, beats.get(name), _status(job, beats.get(name), drains.get(name), start_timeout), version)
        for name in worker_names(job)
    ]


async def worker(redis: Redis, jobs: JobStore, job: Job, name: str, start_timeout: float) -> WorkerObject:
    """One of them. Raises `NotFound`."""
    states = await workers(redis, jobs, job, start_timeout)
    for each in states:
        if each["id"] == name:
            return each
    raise unknown_worker(job, name)


def worker_names(job: Job) -> list[str]:
    """The names of all its workers, the learner first."""
    return [LEARNER_NAME, *map(rollout_name, range(job.hyperparameters.get("rollout_workers", 1)))]


def unknown_worker(job: Job, name: str) -> NotFound:
    """The error for a name that no worker of the job has."""
    return NotFound(f"job {job.id} has no worker {name!r}; it has {', '.join(worker_names(job))}", param="worker")


def _status(job: Job, beat: WorkerMetrics | None, drain: Drain | None, start_timeout: float) -> WorkerStatus:
    if job.finished_at is not None or job.status == "paused":
        return "stopped"
    if beat is None:
        return "starting"
    silent = time.time() - beat.time
    if beat.state == "starting" and silent < start_timeout:
        return "starting"
    if silent > LOST_SECONDS:
        return "lost"
    if drain is None:
        return "running"
    return "drained" if beat.state == "drained" and beat.time >= drain.asked_at else "draining"


def _shown(name: str, beat: WorkerMetrics | None, status: WorkerStatus, version: int) -> WorkerObject:
    role: Literal["learner", "rollout"] = "learner" if name == LEARNER_NAME else "rollout"
    known = beat or WorkerMetrics(worker=name, role=role, time=0, version=version, uptime=0, busy=0, waiting={})
    return {
        "id": name,
        "object": "fine_tuning.job.worker",
        "role": role,
        "status": status,
        "version": known.version,
        "lag": max(0, version - known.version),
        "busy": known.busy,
        "waiting": known.waiting,
        "running": known.running,
        "tokens": known.tokens,
        "errors": known.errors,
        "seen_at": None if beat is None else beat.time,
        "uptime": known.uptime,
    }
