"""Drains a rollout worker for maintenance, and lets it work again."""

from __future__ import annotations

from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.protocols.worker import LEARNER_NAME
from headrace_core.types.job import Job

from ..context import GatewayContext
from ..views.workers import unknown_worker, worker_names


async def drain(gateway: GatewayContext, job: Job, name: str, seconds: float) -> None:
    """Give a rollout worker no new groups. Raises `InvalidRequest` for the learner, `InvalidState` for an ended job."""
    _require_rollout(job, name)
    await WorkerDrains(gateway.redis, job.id).request(name, seconds)
    await gateway.jobs.emit_event(job.id, f"{name} is being drained, by {gateway.principal.name}")


async def undrain(gateway: GatewayContext, job: Job, name: str) -> bool:
    """Give a drained worker groups again; whether it was drained. Raises like `drain`."""
    _require_rollout(job, name)
    if not await WorkerDrains(gateway.redis, job.id).release(name):
        return False
    await gateway.jobs.emit_event(job.id, f"{name} takes work again, by {gateway.principal.name}")
    return True


def _require_rollout(job: Job, name: str) -> None:
    """Raises `NotFound`, `InvalidRequest`, `InvalidState`."""
    if name not in worker_names(job):
        raise unknown_worker(job, name)
    if name == LEARNER_NAME:
        raise InvalidRequest("the learner cannot be drained: pause the job instead", param="worker")
    if job.finished_at is not None:
        raise InvalidState(f"job {job.id} is {job.status}: it has no workers any more")
