"""How a job runs, beyond OpenAI's surface: ledger, staleness, measurements, and one stream of it all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from headrace_core.jobs import Event

from ..context import Gateway, Here
from ..progress import estimated_finish
from ..reward_summary import summary
from ..schemas import event_object, job_object
from ..streaming import PING_SECONDS, follow, stream_id
from .history import LastEventId

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["observe"])


@router.get("/ledger")
async def ledger(here: Here, job_id: str, group: Annotated[int | None, Query(ge=0)] = None) -> dict[str, Any]:
    """Counts by state, which always add up to `admitted`; with `group`, everything that happened to that group."""
    await here.jobs.get(job_id)
    if group is not None:
        return await group_history(here, job_id, group)
    account = await here.ledger(job_id).account()
    return {"object": "fine_tuning.job.ledger", "fine_tuning_job_id": job_id, **account.as_dict()}


@router.get("/ledger/{group}")
async def group_history(here: Here, job_id: str, group: int) -> dict[str, Any]:
    """Every state that one group was in, and when."""
    history = await here.ledger(job_id).history(group)
    return {
        "object": "fine_tuning.job.group",
        "fine_tuning_job_id": job_id,
        "group": group,
        "history": [asdict(t) for t in history],
    }


@router.get("/staleness")
async def staleness(here: Here, job_id: str) -> dict[str, Any]:
    """The bound, the largest age that entered a gradient, and each step's tokens by age."""
    job = await here.jobs.get(job_id)
    account = await here.ledger(job_id).account()
    found = [data for _, kind, data in await here.jobs.metrics(job_id) if kind == "step"]
    return {
        "object": "fine_tuning.job.staleness",
        "fine_tuning_job_id": job_id,
        "max_staleness": job.hyperparameters["max_staleness"],
        "late": job.hyperparameters["late"],
        "largest_age": account.largest_age,
        "masked_tokens": account.masked_tokens,
        "dropped_groups": account.states["dropped_stale"],
        "steps": [{"step": s["step"], "time": s["time"], "ages": s["ages"]} for s in found],
    }


@router.get("/reward")
async def reward(here: Here, job_id: str) -> dict[str, Any]:
    """How far the reward can be relied on: failures by kind, scored again, held against a truth, its drift."""
    await here.jobs.get(job_id)
    found = summary(await here.jobs.rewards(job_id))
    return {"object": "fine_tuning.job.reward", "fine_tuning_job_id": job_id, **found}


@router.get("/metrics")
async def metrics(
    here: Here, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000
) -> dict[str, Any]:
    """What was measured, oldest first, after the id of an earlier answer."""
    await here.jobs.get(job_id)
    found = await here.jobs.metrics(job_id, "-" if after is None else stream_id(after, "after"))
    data = [{"id": i, "kind": kind, "data": measured} for i, kind, measured in found[:limit]]
    return {"object": "list", "data": data, "has_more": len(found) > limit}


@router.get("/stream")
async def stream(here: Here, job_id: str, last_event_id: LastEventId = None) -> EventSourceResponse:
    """Everything the dashboard shows, from the job's beginning and on as it comes. SSE events: `event` (what the job
    says), `step`, `evaluation`, `update`, `worker`, `reward` (measurements), `state` (job, ledger and what the reward
    does, about once a second)."""
    await here.jobs.get(job_id)
    told, _, measured = (last_event_id or "0/0").partition("/")
    since = (stream_id(told), stream_id(measured))
    return EventSourceResponse(_everything(here, job_id, *since), ping=PING_SECONDS)


async def _everything(here: Gateway, job_id: str, told: str, measured: str) -> AsyncIterator[ServerSentEvent]:
    yield await _state(here, job_id)
    async for entry in follow(here.jobs, job_id, told, measured):
        if entry is None:
            yield await _state(here, job_id)
        elif entry.stream == "events":
            told = entry.id
            event = msgspec.json.decode(entry.fields[b"event"], type=Event)
            yield _sse("event", event_object(event), f"{told}/{measured}")
        else:
            measured = entry.id
            yield ServerSentEvent(
                entry.fields[b"data"].decode(), event=entry.fields[b"kind"].decode(), id=f"{told}/{measured}"
            )
    yield await _state(here, job_id)
    yield ServerSentEvent("[DONE]", event="done")


async def _state(here: Gateway, job_id: str) -> ServerSentEvent:
    job = await here.jobs.get(job_id)
    account = await here.ledger(job_id).account()
    state = {
        "job": job_object(job, await estimated_finish(here.jobs, job)),
        "ledger": account.as_dict(),
        "reward": summary(await here.jobs.rewards(job_id)),
    }
    return _sse("state", state, None)


def _sse(name: str, data: dict[str, Any], entry_id: str | None) -> ServerSentEvent:
    return ServerSentEvent(msgspec.json.encode(data).decode(), event=name, id=entry_id)
