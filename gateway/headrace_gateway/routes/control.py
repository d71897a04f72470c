"""Changing what runs: a new job from a checkpoint of another one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .. import repeats
from ..context import Here
from ..fork import ForkJob
from ..fork import fork as forked
from ..kept import KeptRoute
from ..responses.jobs import JobObject
from .jobs import shown

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["control"], route_class=KeptRoute)


@router.post("/fork", response_model=JobObject)
async def fork(here: Here, request: Request, job_id: str, body: ForkJob) -> Response:
    """A new job from a checkpoint of this one, checked as a submission is; the body says what is to be otherwise."""
    return shown(await repeats.once(here, request, lambda new_id: forked(here, job_id, new_id, body)))
