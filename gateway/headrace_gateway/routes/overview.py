"""/v1/headrace/overview: all jobs in short."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ..answers import ready
from ..context import Here
from ..observed import OverviewList
from ..overview import overview
from ..pagination import listing

router = APIRouter(prefix="/v1/headrace", tags=["observe"])


@router.get("/overview", response_model=OverviewList)
async def jobs_in_short(
    here: Here,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Jobs in short, newest first: progress, newest figures, sparklines."""
    return ready(listing(*await overview(here.redis, here.jobs, after, limit)))
