"""…/rollouts: the completions that steps consumed, to be read.

A page is walked in Redis group by group, and turned into text and JSON in a thread: the event loop does neither.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from headrace_core.jobs.rollout_records import Rollout, RolloutStore

from ..context import Context
from ..schemas.rollouts import RolloutList
from ..views.rollouts import rollout_list, tokens_in
from ..web.json_response import json_response

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["observe"])

MAX_PAGE_TOKENS = 100_000
"""Of one page, which is about 10 MB: it ends after the group that reaches it."""

Number = Annotated[int | None, Query(ge=0, le=10**12)]


@router.get("/rollouts", response_model=RolloutList)
async def rollouts(
    here: Context,
    job_id: str,
    step: Number = None,
    group: Number = None,
    after: Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,14}-[0-9]{1,15}$")] = None,
    limit: Annotated[int, Query(ge=1, le=50)] = 5,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """Groups that were trained, of some steps, of one, or one group; newest first.

    Of each step the job keeps `keep_rollouts` groups, and forgets the oldest beyond `keep_rollouts_mib`. A page may end
    before `limit`, where its completions are long; `has_more` says so. `after` is the id of a group, kept still or not.
    """
    job = await here.jobs.get(job_id)
    store, newest_first = RolloutStore(here.redis, job_id), order == "desc"
    cursor = None if after is None else _place(after)
    if group is not None:
        rollout = await store.of_group(group)
        wanted = rollout is not None and step in (None, rollout.step) and _follows(rollout, cursor, newest_first)
        page, has_more = [rollout] if rollout is not None and wanted else [], False
    else:
        page, has_more = await _page(store, cursor, step, newest_first, limit)
    return await asyncio.to_thread(lambda: json_response(rollout_list(job_id, Path(job.model_path), page, has_more)))


async def _page(
    store: RolloutStore, after: tuple[int, int] | None, step: int | None, newest_first: bool, limit: int
) -> tuple[list[Rollout], bool]:
    """(at most `limit` groups of about `MAX_PAGE_TOKENS` tokens, whether more follow)."""
    page, tokens = list[Rollout](), 0
    async for rollout in store.walk(after=after, step=step, newest_first=newest_first):
        if len(page) == limit or tokens >= MAX_PAGE_TOKENS:
            return page, True
        page.append(rollout)
        tokens += tokens_in(rollout)
    return page, False


def _place(text: str) -> tuple[int, int]:
    step, group = text.split("-")
    return int(step), int(group)


def _follows(rollout: Rollout, cursor: tuple[int, int] | None, newest_first: bool) -> bool:
    if cursor is None:
        return True
    place = (rollout.step, rollout.group)
    return place < cursor if newest_first else place > cursor
