"""What a job has said and saved: events (as a list, or as a stream that goes on) and checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from headrace_core.jobs.history import event_of

from ..context import Context
from ..events.sse_response import EVENT_STREAM, SseResponse
from ..events.stream_formats import OPENAI
from ..schemas.job_answers import CheckpointList, EventList
from ..views.objects import checkpoint_object, event_object
from ..web.cursors import event_number, resume_after
from ..web.json_response import json_response
from ..web.pagination import listing, page

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["jobs"])

After = Annotated[str | None, Query(max_length=200)]
LastEventId = Annotated[str | None, Header(max_length=200)]


@router.get("/events", response_model=EventList, responses=EVENT_STREAM)
async def events(
    here: Context,
    job_id: str,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    stream: bool = False,
    last_event_id: LastEventId = None,
) -> Response:
    """What a job said, newest first; with `stream=true` oldest first, as server-sent events, until it has ended."""
    await here.jobs.get(job_id)
    if stream:
        return SseResponse(here.hub.stream_events(job_id, resume_after(job_id, last_event_id), OPENAI))
    before = None if after is None else event_number(job_id, after, "after")
    entries = await here.jobs.history.newest(job_id, "event", before, limit + 1)
    answer: EventList = listing([event_object(event_of(job_id, e)) for e in entries[:limit]], len(entries) > limit)
    return json_response(answer)


@router.get("/checkpoints", response_model=CheckpointList)
async def checkpoints(
    here: Context, job_id: str, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 10
) -> Response:
    """What a job saved, newest first."""
    await here.jobs.get(job_id)
    listed, has_more = page(await here.jobs.checkpoints(job_id), after, limit)
    answer: CheckpointList = listing([checkpoint_object(job_id, c) for c in listed], has_more)
    return json_response(answer)
