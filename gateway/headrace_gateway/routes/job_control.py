"""What can be changed of a job that runs, its settings and its workers, and what is under way in it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from headrace_core.types.job import Job

from ..context import Context, GatewayContext
from ..operations import settings_change, worker_drain
from ..operations.settings_change import ChangeSettings
from ..principal import unchanged
from ..schemas.control import QueuesObject, SettingsObject, WeightsObject, WorkerList, WorkerObject
from ..views import pipeline
from ..views import workers as worker_states
from ..web.durable_route import DurableRoute
from ..web.json_response import json_response
from ..web.pagination import listing

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["control"], route_class=DurableRoute)

_DAY = 86_400.0
Worker = Annotated[str, Path(max_length=100)]


@router.get("/settings", response_model=SettingsObject)
async def settings(here: Context, job_id: str) -> Response:
    """The settings in force, those that may change while the job runs, and every change so far."""
    return json_response(await settings_change.shown(here, job_id))


@router.patch("/settings", response_model=SettingsObject)
async def change_settings(here: Context, request: Request, job_id: str, body: ChangeSettings) -> Response:
    """Change settings of a job that has not ended, from the next policy version on that is not claimed yet."""
    if not await settings_change.change(here, job_id, body):
        unchanged(request)
    return json_response(await settings_change.shown(here, job_id))


@router.get("/workers", response_model=WorkerList)
async def workers(here: Context, job_id: str) -> Response:
    """Every worker of the job, by its last heartbeat."""
    job = await here.jobs.get(job_id)
    states = await worker_states.workers(here.redis, here.jobs, job, here.settings.start_timeout)
    answer: WorkerList = listing(states, has_more=False)
    return json_response(answer)


@router.post("/workers/{worker}/drain", response_model=WorkerObject)
async def drain(
    here: Context, job_id: str, worker: Worker, timeout: Annotated[float, Query(ge=0, le=_DAY)] = 600.0
) -> Response:
    """Give a rollout worker no more groups; those it has after `timeout` seconds go to others. It stays up."""
    job = await here.jobs.get(job_id)
    await worker_drain.drain(here, job, worker, timeout)
    return await _worker(here, job, worker)


@router.post("/workers/{worker}/undrain", response_model=WorkerObject)
async def undrain(here: Context, request: Request, job_id: str, worker: Worker) -> Response:
    """Let a drained worker take groups again."""
    job = await here.jobs.get(job_id)
    if not await worker_drain.undrain(here, job, worker):
        unchanged(request)
    return await _worker(here, job, worker)


async def _worker(here: GatewayContext, job: Job, name: str) -> Response:
    return json_response(await worker_states.worker(here.redis, here.jobs, job, name, here.settings.start_timeout))


@router.get("/queues", response_model=QueuesObject)
async def queues(here: Context, job_id: str) -> Response:
    """Groups under way by stage, how old the oldest are, the pacing window, and the memory that they take."""
    return json_response(await pipeline.queues(here.redis, here.jobs, await here.jobs.get(job_id)))


@router.get("/weights", response_model=WeightsObject)
async def weights(here: Context, job_id: str) -> Response:
    """Policy versions that were published, and how each rollout worker took them."""
    return json_response(await pipeline.weights(here.redis, here.jobs, await here.jobs.get(job_id)))
