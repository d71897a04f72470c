"""How a job runs, beyond OpenAI's surface: ledger, staleness, measurements, and one stream of it all."""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from headrace_core.jobs.history import MEASURED, STEPS, HistoryEntry, page_of_entries
from headrace_core.ledger.counts import LedgerCounts
from headrace_core.redis_access.json_records import decode_records
from headrace_core.redis_access.keys import JobKeys

from ..context import Context
from ..events.sse_response import SseResponse
from ..events.stream_formats import EVERYTHING
from ..operations.settings_change import record
from ..schemas.observe import (
    GroupObject,
    LedgerObject,
    Measured,
    MeasurementList,
    MeasurementObject,
    RewardObject,
    StalenessObject,
)
from ..views.reward_summary import summary
from ..web.cursors import entry_number, resume_after
from ..web.json_response import encoded_json, json_response
from ..web.pagination import listing
from .job_events import After, LastEventId

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["observe"])

_MAX_NUMBER = 2**53 - 1
"""Largest group or step: JSON's readers count exactly up to here."""
FromStep = Annotated[int | None, Query(ge=0, le=_MAX_NUMBER)]


@router.get("/ledger", response_model=LedgerObject | GroupObject)
async def ledger(
    here: Context, job_id: str, group: Annotated[int | None, Query(ge=0, le=_MAX_NUMBER)] = None
) -> Response:
    """Counts by state, which always add up to `admitted`; with `group`, everything that happened to that group."""
    if group is not None:
        return await group_history(here, job_id, group)
    await here.jobs.get(job_id)
    return json_response(_ledger_object(job_id, await here.ledger(job_id).counts()))


@router.get("/ledger/{group}", response_model=GroupObject)
async def group_history(here: Context, job_id: str, group: Annotated[int, Path(ge=0, le=_MAX_NUMBER)]) -> Response:
    """Every state that one group was in, and when."""
    await here.jobs.get(job_id)
    answer: GroupObject = {
        "object": "fine_tuning.job.group",
        "fine_tuning_job_id": job_id,
        "group": group,
        "history": [{"state": t.state, "at": t.at, "note": t.note} for t in await here.ledger(job_id).history(group)],
    }
    return json_response(answer)


class _StepAges(msgspec.Struct, frozen=True):
    step: int
    time: float
    ages: msgspec.Raw


@router.get("/staleness", response_model=StalenessObject)
async def staleness(
    here: Context, job_id: str, from_step: FromStep = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 2000
) -> Response:
    """The bound, the largest age that entered a gradient, and each step by age, with its bound, oldest first."""
    job = await here.jobs.get(job_id)
    account = await here.ledger(job_id).counts()
    start = 0 if from_step is None else await here.jobs.history.before_step(job_id, from_step)
    entries, has_more = await page_of_entries(here.jobs.history, job_id, start, limit, STEPS)
    where = JobKeys(job_id).history("step")
    read = decode_records(((f"{where} {e.number}-0", e.data) for e in entries), _StepAges)
    live = await record(here, job)
    answer: StalenessObject = {
        "object": "fine_tuning.job.staleness",
        "fine_tuning_job_id": job_id,
        "max_staleness": job.hyperparameters["max_staleness"],
        "late": job.hyperparameters["late"],
        "largest_age": account.largest_age,
        "largest_age_bound": account.largest_age_bound,
        "masked_tokens": account.masked_tokens,
        "dropped_groups": account.states["dropped_stale"],
        "steps": [
            {
                "step": s.step,
                "time": s.time,
                "ages": encoded_json(s.ages),
                "max_staleness": live.at(s.step - 1).max_staleness,
            }
            for s in read
        ],
        "has_more": has_more,
    }
    return json_response(answer)


@router.get("/reward", response_model=RewardObject)
async def reward(here: Context, job_id: str) -> Response:
    """How far the reward can be relied on: failures by kind, scored again, held against a truth, its drift."""
    await here.jobs.get(job_id)
    figures = summary(await here.jobs.rewards(job_id))
    answer: RewardObject = {"object": "fine_tuning.job.reward", "fine_tuning_job_id": job_id, **figures}
    return json_response(answer)


@router.get("/metrics", response_model=MeasurementList)
async def metrics(
    here: Context,
    job_id: str,
    after: After = None,
    from_step: FromStep = None,
    kind: Measured | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> Response:
    """What was measured, oldest first: after an entry's id, from a step on, of one kind."""
    await here.jobs.get(job_id)
    start = 0 if after is None else entry_number(after, "after")
    if from_step is not None:
        start = max(start, await here.jobs.history.before_step(job_id, from_step))
    kinds = MEASURED if kind is None else (kind,)
    entries, has_more = await page_of_entries(here.jobs.history, job_id, start, limit, kinds)
    answer: MeasurementList = listing([_measurement(e) for e in entries], has_more)
    return json_response(answer)


@router.get("/stream", response_model=None, response_class=SseResponse, status_code=200)
async def stream(
    here: Context,
    job_id: str,
    thin: Annotated[int | None, Query(ge=2, le=10_000)] = None,
    last_event_id: LastEventId = None,
) -> SseResponse:
    """Everything the dashboard shows, from the job's beginning and on as it comes. SSE events: `event` (what the job
    says), `step`, `evaluation`, `update`, `worker`, `reward` (measurements), `state` (job, ledger and what the reward
    does, when it changes, at most once a second), `done`. With `thin`, of what is past at most so many of each kind and
    worker, the first and the last among them; an event `live` follows them."""
    await here.jobs.get(job_id)
    return SseResponse(here.hub.stream_events(job_id, resume_after(job_id, last_event_id), EVERYTHING, thin))


def _ledger_object(job_id: str, account: LedgerCounts) -> LedgerObject:
    return {
        "object": "fine_tuning.job.ledger",
        "fine_tuning_job_id": job_id,
        "admitted": account.admitted,
        "states": account.states,
        "version": account.version,
        "masked_tokens": account.masked_tokens,
        "largest_age": account.largest_age,
        "largest_age_bound": account.largest_age_bound,
        "sampled_tokens": account.sampled_tokens,
        "fenced": account.fenced,
        "balanced": account.balanced,
    }


def _measurement(entry: HistoryEntry) -> MeasurementObject:
    return {"id": str(entry.number), "kind": cast(Measured, entry.kind), "data": encoded_json(entry.data)}
