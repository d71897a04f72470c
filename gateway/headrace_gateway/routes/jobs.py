"""/v1/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from headrace_core.errors import Damaged, InvalidState
from headrace_core.types.job import Job, Status

from ..context import Context, GatewayContext
from ..operations import idempotency
from ..operations.submission import submit
from ..principal import unchanged
from ..schemas.job_answers import JobList, JobObject
from ..schemas.jobs import CreateJob
from ..views.eta import estimated_finish
from ..views.objects import job_object
from ..web.durable_route import DurableRoute
from ..web.json_response import json_response
from ..web.pagination import listing, page

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"], route_class=DurableRoute)

After = Annotated[str | None, Query(max_length=200, description="Id of the last job of the previous page.")]
Limit = Annotated[int, Query(ge=1, le=100)]
_METADATA = re.compile(r"metadata\[(.+)\]")
_BY_METADATA = {
    "name": "metadata",
    "in": "query",
    "description": "As `metadata[k]=v`: only jobs that have all of these.",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


@router.post("", response_model=JobObject)
async def create(here: Context, request: Request, body: CreateJob) -> Response:
    """Submit a job. What can be known to be wrong is refused now."""
    return shown(await idempotency.create_once(here, request, lambda claim: submit(here, claim, body)))


@router.get("", response_model=JobList, openapi_extra={"parameters": [_BY_METADATA]})
async def list_jobs(here: Context, request: Request, after: After = None, limit: Limit = 20) -> Response:
    """Jobs, newest first; `metadata[k]=v` keeps those that have it."""
    wanted = {m[1]: v for k, v in request.query_params.items() if (m := _METADATA.fullmatch(k))}
    jobs = [j for j in await here.jobs.all() if wanted.items() <= j.metadata.items()]
    listed, has_more = page(jobs, after, limit)
    answer: JobList = listing([_object(job) for job in listed], has_more)
    return json_response(answer)


@router.get("/{job_id}", response_model=JobObject)
async def retrieve(here: Context, job_id: str) -> Response:
    """One job."""
    return shown(await here.jobs.get(job_id))


@router.post("/{job_id}/cancel", response_model=JobObject)
async def cancel(here: Context, request: Request, job_id: str) -> Response:
    """End a job that has not ended. What it trained so far stays in its checkpoints. One whose record is damaged is
    cancelled all the same; the answer is the error that names the record then."""
    if await _asked(here, request, job_id, "cancelled"):
        await here.jobs.emit_event(job_id, "cancelled")
    await here.controllers.cancel(job_id)
    try:
        return shown(await here.jobs.get(job_id))
    except Damaged as error:
        raise Damaged(f"job {job_id} is cancelled, but cannot be shown: {error.message}") from error


@router.post("/{job_id}/pause", response_model=JobObject)
async def pause(here: Context, request: Request, job_id: str) -> Response:
    """Stop a job for a while: its last step becomes a checkpoint, a model that can be used; its workers end."""
    await here.jobs.get(job_id)  # one that cannot be read stays as it is
    if await _asked(here, request, job_id, "paused"):
        await here.jobs.emit_event(job_id, "pausing")
    job = await here.jobs.get(job_id)
    await here.controllers.ensure(job)
    return shown(job)


@router.post("/{job_id}/resume", response_model=JobObject)
async def resume(here: Context, request: Request, job_id: str) -> Response:
    """Let a paused job go on where it was."""
    await here.jobs.get(job_id)
    if await _asked(here, request, job_id, "queued", "running"):
        await here.jobs.emit_event(job_id, "Resumed")
    job = await here.jobs.get(job_id)
    await here.controllers.ensure(job)
    return shown(job)


async def _asked(here: GatewayContext, request: Request, job_id: str, to: Status, *also: Status) -> bool:
    """Whether the status changed. Asked for twice, by two clients or by one that did not hear the answer, the job is so
    already, or beyond (`also`), and that is no error. Raises `InvalidState` where it cannot become so."""
    try:
        await here.jobs.move(job_id, to)
    except InvalidState:
        if await here.jobs.status(job_id) not in (to, *also):
            raise
        unchanged(request)
        return False
    return True


def _object(job: Job) -> JobObject:
    return job_object(job, estimated_finish(job))


def shown(job: Job) -> Response:
    """The answer that is a job."""
    return json_response(_object(job))
