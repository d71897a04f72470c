"""The gateway's app: routes over Redis and the data folder, and one background task.

    requests ──► routes ──► Redis, data folder
    every RECONCILE_SECONDS ──► controllers.reconcile(), exports.reconcile(): what runs becomes what should

The app holds no state: any number of them may serve one Redis, and one may be killed at any moment. One of them at a
time reconciles (`headrace:gateway` names it and expires).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core import keys
from headrace_core.errors import HeadraceError
from headrace_core.jobs import JobStore
from headrace_core.logs import get_logger
from headrace_core.redis import answer, connect_for_requests
from headrace_core.settings import Settings

from . import document, envelope
from .access import Access
from .chats import Chats, RayChats
from .context import Gateway
from .controllers import Controllers, RayControllers
from .exporting.supervisor import Exports
from .routes import (
    access,
    chat,
    control,
    dashboard,
    files,
    graders,
    health,
    history,
    jobs,
    login,
    models,
    observe,
    overview,
    rollouts,
    running,
)

log = get_logger(__name__)

RECONCILE_SECONDS = 5.0
_ROUTERS: Sequence[APIRouter] = (
    files.router, jobs.router, history.router, observe.router, rollouts.router, control.router, running.router,
    overview.router, graders.router, chat.router, models.router, access.router, health.router, login.router,
    dashboard.router,
)  # fmt: skip


def create_app(
    settings: Settings, redis_url: str, controllers: Controllers | None = None, chats: Chats | None = None
) -> FastAPI:
    """The app over the Redis at `redis_url`; jobs are run by `controllers`, models chat in `chats` (Ray actors, if not
    given)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = connect_for_requests(redis_url)
        runs = controllers or RayControllers(settings, redis_url, redis)
        gateway = app.state.gateway = Gateway.over(settings, redis, runs, chats or RayChats(settings, redis))
        exports = Exports(settings, redis_url, JobStore(redis))
        reconciling = asyncio.create_task(_reconcile_forever(redis, runs, exports), name="reconcile")
        try:
            yield
        finally:
            gateway.hub.close()
            reconciling.cancel()
            with suppress(asyncio.CancelledError):
                await reconciling
            await exports.close()
            await redis.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, generate_unique_id_function=document.operation_id)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(Access, settings=settings)
    envelope.install(app, settings.max_upload_bytes)
    document.install(app)
    return app


async def _reconcile_forever(redis: Redis, controllers: Controllers, exports: Exports) -> None:
    """An attempt that fails is logged and made again: neither Redis nor Ray needs to be there at every moment."""
    me = uuid.uuid4().hex
    while True:
        try:
            if await _is_mine(redis, me):
                await controllers.reconcile()
                await exports.reconcile()
            else:
                await exports.close()
        except (HeadraceError, RedisError, OSError) as error:
            log.warning("could not reconcile; trying again", error=str(error), seconds=RECONCILE_SECONDS)
        await asyncio.sleep(RECONCILE_SECONDS)


async def _is_mine(redis: Redis, me: str) -> bool:
    """Whether this app is the one that reconciles; it stays so while it asks again in time."""
    seconds = int(RECONCILE_SECONDS * 3)
    if await answer(redis.set(keys.GATEWAY, me, ex=seconds, nx=True)):
        return True
    if await answer(redis.get(keys.GATEWAY)) != me.encode():
        return False
    await answer(redis.expire(keys.GATEWAY, seconds))
    return True
