"""/healthz: the process answers. /readyz: it can work. /metrics: Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from headrace_core.errors import Unavailable
from headrace_core.redis_access.client import ping

from ..context import Context
from ..exporters.prometheus import CONTENT_TYPE, exposition
from ..schemas.service import Alive, Ready

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Alive:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(here: Context) -> Ready:
    """Redis and Ray answer; else 503, and the message says which does not."""
    wrong = []
    for check in (ping(here.redis), here.controllers.ping()):
        try:
            await check
        except Unavailable as error:
            wrong.append(error.message)
    if wrong:
        raise Unavailable("; ".join(wrong), code="not_ready")
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(here: Context) -> Response:
    """Every job's state, for Prometheus; docs/prometheus.md names the series."""
    return Response(await exposition(here.redis), media_type=CONTENT_TYPE)
