"""A job's workers as users see them: heartbeats, read with what is asked of the worker and how long it was silent."""

from __future__ import annotations

import time
from typing import Any

from headrace_core.drains import Drain, Drains
from headrace_core.errors import InvalidRequest, InvalidState, NotFound
from headrace_core.jobs import Job
from headrace_core.metrics import WorkerMetrics

from .context import Gateway
from .waits import LEARNER

LOST_SECONDS = 15.0
"""A worker beats every two seconds; one silent for so long is lost."""


async def workers(gateway: Gateway, job: Job) -> list[dict[str, Any]]:
    """All of them, those too that have not been heard of; the learner first."""
    beats = {beat.worker: beat for beat in await gateway.jobs.workers(job.id)}
    drains = await Drains(gateway.redis, job.id).all()
    version, _ = await gateway.ledger(job.id).newest()
    return [
        _shown(name, beats.get(name), _status(gateway, job, beats.get(name), drains.get(name)), version)
        for name in _names(job)
    ]


async def worker(gateway: Gateway, job: Job, name: str) -> dict[str, Any]:
    """One of them. Raises `NotFound`."""
    found = await workers(gateway, job)
    for each in found:
        if each["id"] == name:
            return each
    raise _unknown(job, name)


async def drain(gateway: Gateway, job: Job, name: str, seconds: float) -> dict[str, Any]:
    """Give a rollout worker no more work. Raises `InvalidRequest` for the learner, `InvalidState` for an ended job."""
    _rollout(job, name)
    await Drains(gateway.redis, job.id).ask(name, seconds)
    await gateway.jobs.tell(job.id, f"{name} is being drained, by {gateway.principal.name}")
    return await worker(gateway, job, name)


async def undrain(gateway: Gateway, job: Job, name: str) -> bool:
    """Let it go on; whether it was drained. Raises as `drain` does."""
    _rollout(job, name)
    if not await Drains(gateway.redis, job.id).release(name):
        return False
    await gateway.jobs.tell(job.id, f"{name} takes work again, by {gateway.principal.name}")
    return True


def _names(job: Job) -> list[str]:
    return [LEARNER, *(f"rollout-{number}" for number in range(job.hyperparameters.get("rollout_workers", 1)))]


def _unknown(job: Job, name: str) -> NotFound:
    return NotFound(f"job {job.id} has no worker {name!r}; it has {', '.join(_names(job))}", param="worker")


def _rollout(job: Job, name: str) -> None:
    """Raises `NotFound`, `InvalidRequest`, `InvalidState`."""
    if name not in _names(job):
        raise _unknown(job, name)
    if name == LEARNER:
        raise InvalidRequest("the learner cannot be drained: pause the job instead", param="worker")
    if job.finished_at is not None:
        raise InvalidState(f"job {job.id} is {job.status}: it has no workers any more")


def _status(gateway: Gateway, job: Job, beat: WorkerMetrics | None, drain: Drain | None) -> str:
    if job.finished_at is not None or job.status == "paused":
        return "stopped"
    if beat is None:
        return "starting"
    silent = time.time() - beat.time
    if beat.state == "starting" and silent < gateway.settings.start_timeout:
        return "starting"
    if silent > LOST_SECONDS:
        return "lost"
    if drain is None:
        return "running"
    return "drained" if beat.state == "drained" and beat.time >= drain.asked_at else "draining"


def _shown(name: str, beat: WorkerMetrics | None, status: str, version: int) -> dict[str, Any]:
    role = "learner" if name == LEARNER else "rollout"
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
