"""/v1/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from headrace_core.jobs import Job

from .. import repeats
from ..context import Here
from ..identity import made
from ..progress import estimated_finish
from ..schemas import CreateJob, job_object, listing, page
from ..submission import submit

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=100)]
_METADATA = re.compile(r"metadata\[(.+)\]")


@router.post("")
async def create(here: Here, request: Request, body: CreateJob) -> dict[str, Any]:
    """Submit a job. What can be known to be wrong is refused now."""
    raw = await request.body()
    reservation = await repeats.reserve(here.redis, here.principal.name, request.headers, raw)
    while reservation.repeated:
        job = await repeats.result(here.redis, here.jobs, reservation)
        if job is not None:
            return _shown(job)
        reservation = await repeats.reserve(here.redis, here.principal.name, request.headers, raw)
    try:
        job = await submit(here, reservation.job_id, body)
        made(request, job.id)
        return _shown(job)
    except BaseException:
        await repeats.give_up(here.redis, reservation)
        raise


@router.get("")
async def list_jobs(here: Here, request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """Jobs, newest first; `metadata[k]=v` keeps those that have it."""
    wanted = {m[1]: v for k, v in request.query_params.items() if (m := _METADATA.fullmatch(k))}
    jobs = [j for j in await here.jobs.all() if wanted.items() <= j.metadata.items()]
    found, has_more = page(jobs, after, limit)
    return listing([_shown(job) for job in found], has_more)


@router.get("/{job_id}")
async def retrieve(here: Here, job_id: str) -> dict[str, Any]:
    """One job."""
    return _shown(await here.jobs.get(job_id))


@router.post("/{job_id}/cancel")
async def cancel(here: Here, job_id: str) -> dict[str, Any]:
    """End a job that has not ended. What it trained so far stays in its checkpoints."""
    await here.jobs.move(job_id, "cancelled")
    await here.controllers.cancel(job_id)
    return _shown(await here.jobs.get(job_id))


@router.post("/{job_id}/pause")
async def pause(here: Here, job_id: str) -> dict[str, Any]:
    """Stop a job for a while: its last step becomes a checkpoint, a model that can be used; its workers end."""
    await here.jobs.move(job_id, "paused")
    return _shown(await here.jobs.get(job_id))


@router.post("/{job_id}/resume")
async def resume(here: Here, job_id: str) -> dict[str, Any]:
    """Let a paused job go on where it was."""
    await here.jobs.move(job_id, "queued")
    job = await here.jobs.get(job_id)
    await here.jobs.tell(job_id, "Resumed")
    await here.controllers.ensure(job)
    return _shown(job)


def _shown(job: Job) -> dict[str, Any]:
    return job_object(job, estimated_finish(job))
