"""What a job has said and saved: events (as a list, or as a stream that goes on) and checkpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from headrace_core.jobs import Event

from ..context import Gateway, Here
from ..schemas import checkpoint_object, event_object, listing, page
from ..streaming import PING_SECONDS, follow, stream_id

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["jobs"])

LastEventId = Annotated[str | None, Header()]


@router.get("/events", response_model=None)
async def events(
    here: Here,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    stream: bool = False,
    last_event_id: LastEventId = None,
) -> dict[str, Any] | Response:
    """Newest first; with `stream=true` oldest first, as server-sent events, until the job has ended."""
    await here.jobs.get(job_id)
    if stream:
        since = stream_id(last_event_id)
        return EventSourceResponse(_told(here, job_id, since), ping=PING_SECONDS)
    told = [event for _, event in reversed(await here.jobs.events(job_id))]
    found, has_more = page(told, after, limit)
    return listing([event_object(e) for e in found], has_more)


@router.get("/checkpoints")
async def checkpoints(
    here: Here, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 10
) -> dict[str, Any]:
    """Newest first."""
    await here.jobs.get(job_id)
    found, has_more = page(await here.jobs.checkpoints(job_id), after, limit)
    return listing([checkpoint_object(job_id, c) for c in found], has_more)


async def _told(here: Gateway, job_id: str, since: str) -> AsyncIterator[ServerSentEvent]:
    async for entry in follow(here.jobs, job_id, events_after=since, metrics_after="$"):
        if entry is not None and entry.stream == "events":
            event = msgspec.json.decode(entry.fields[b"event"], type=Event)
            data = msgspec.json.encode(event_object(event)).decode()
            yield ServerSentEvent(data, event="fine_tuning.job.event", id=entry.id)
    yield ServerSentEvent("[DONE]")
