"""/v1/headrace/overview: all jobs in short."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ..context import Context
from ..schemas.observe import OverviewList
from ..views.overview import overview
from ..web.json_response import json_response
from ..web.pagination import listing

router = APIRouter(prefix="/v1/headrace", tags=["observe"])


@router.get("/overview", response_model=OverviewList)
async def jobs_in_short(
    here: Context,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Jobs in short, newest first: progress, newest figures, sparklines."""
    answer: OverviewList = listing(*await overview(here.redis, here.jobs, after, limit))
    return json_response(answer)
