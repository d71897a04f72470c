"""Changing what runs: a new job from a checkpoint of another one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ..context import Context
from ..operations import idempotency
from ..operations.fork import ForkJob
from ..operations.fork import fork as forked
from ..schemas.job_answers import JobObject
from ..web.durable_route import DurableRoute
from .jobs import shown

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["control"], route_class=DurableRoute)


@router.post("/fork", response_model=JobObject)
async def fork(here: Context, request: Request, job_id: str, body: ForkJob) -> Response:
    """A new job from a checkpoint of this one, checked as a submission is; the body says what is to be otherwise."""
    return shown(await idempotency.create_once(here, request, lambda claim: forked(here, job_id, claim, body)))
