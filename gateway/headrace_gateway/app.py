"""The gateway's ASGI app: routes over Redis and the data folder, and background tasks.

    requests ──► routes ──► Redis, data folder
    every RECONCILE_SECONDS ──► controllers.reconcile(), exports.reconcile(): start what should run and does not

The app holds no state: any number of gateways may serve one Redis, and each may be killed at any moment. One gateway at
a time reconciles; the key `headrace:gateway` names it, and expires if the gateway dies.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.routing import BaseRoute

from headrace_controller.manager import ControllerManager, RayControllerManager
from headrace_core.concurrency import cancel
from headrace_core.config.service_settings import Settings
from headrace_core.errors import HeadraceError
from headrace_core.jobs import reward_code_folder
from headrace_core.jobs.job_store import JobStore
from headrace_core.logs import get_logger
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import connect_for_requests, run

from . import allocator
from .chat.chat_pool import ChatPool, RayChatPool
from .context import GatewayContext
from .exporters.export_processes import ExportProcesses
from .files import file_store, task_files
from .limited_processes.forked_process import ForkServer
from .middleware import request_envelope
from .middleware.access import AccessMiddleware
from .openapi import document
from .routes import (
    access,
    chat,
    dashboard,
    files,
    fork,
    graders,
    health,
    job_control,
    job_events,
    jobs,
    login,
    models,
    observe,
    overview,
    rollouts,
)

log = get_logger(__name__)

RECONCILE_SECONDS = 5.0
CLEAN_SECONDS = 600.0
TRIM_SECONDS = 20.0
_ROUTERS: Sequence[APIRouter] = (
    files.router, jobs.router, job_events.router, observe.router, rollouts.router, fork.router, job_control.router,
    overview.router, graders.router, chat.router, models.router, access.router, health.router, login.router,
    dashboard.router,
)  # fmt: skip


def create_app(
    settings: Settings,
    redis_url: str,
    controllers: ControllerManager | None = None,
    chats: ChatPool | None = None,
    fork_server: ForkServer | None = None,
) -> FastAPI:
    """The app over the Redis at `redis_url`. `controllers` run jobs and `chats` run chat models: Ray actors by default.
    `fork_server` forks the processes that check submissions: by default the app starts its own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = connect_for_requests(redis_url)
        runs = controllers or RayControllerManager.from_config(settings, redis_url, redis)
        pool = chats or RayChatPool(settings, redis)
        gateway = app.state.gateway = GatewayContext.over(settings, redis, runs, pool, fork_server)
        exports = ExportProcesses(settings, redis_url, JobStore(redis))
        background = [
            asyncio.create_task(_reconcile_forever(gateway, exports), name="reconcile"),
            asyncio.create_task(_trim_forever(), name="give memory back"),
        ]
        try:
            yield
        finally:
            gateway.hub.close()
            await cancel(background)
            await exports.close()
            await runs.close()
            if gateway.fork_server is not None:
                await gateway.fork_server.close()
            await redis.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.routes.extend(_routes())
    app.add_middleware(AccessMiddleware, settings=settings)
    request_envelope.install(app, settings.max_upload_bytes)
    document.install(app)
    return app


@cache
def _routes() -> Sequence[BaseRoute]:
    """The routes of all routers. Cached for all apps of a process, since FastAPI takes 0.1 s to read the signatures."""
    root = APIRouter(generate_unique_id_function=document.operation_id)
    for router in _ROUTERS:
        root.include_router(router)
    return root.routes


async def _reconcile_forever(gateway: GatewayContext, exports: ExportProcesses) -> None:
    """Reconcile every `RECONCILE_SECONDS`. A failure is logged and retried: Redis or Ray may be unavailable for a
    while."""
    me, cleaned = uuid.uuid4().hex, -math.inf
    while True:
        try:
            if await is_leader(gateway.redis, me):
                await gateway.controllers.reconcile()
                await exports.reconcile()
                if time.monotonic() - cleaned > CLEAN_SECONDS:
                    cleaned = time.monotonic()
                    await _remove_leftovers(gateway)
            else:
                await exports.close()
        except (HeadraceError, RedisError, OSError) as error:
            log.warning("could not reconcile; trying again", error=str(error), seconds=RECONCILE_SECONDS)
        await asyncio.sleep(RECONCILE_SECONDS)


async def _trim_forever() -> None:
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(allocator.trim)


async def _remove_leftovers(gateway: GatewayContext) -> None:
    """Remove what gateways left behind that died: incomplete files, and audit entries without an end."""
    await gateway.audit.close_abandoned()
    data_dir = gateway.settings.data_dir
    removed = await file_store.sweep(data_dir, gateway.files)
    removed += await reward_code_folder.sweep(data_dir, gateway.jobs)
    names = [path.name for path in removed] + await task_files.sweep(gateway.files, gateway.jobs)
    if names:
        log.info("deleted what was half written", files=names)


async def is_leader(redis: Redis, me: str) -> bool:
    """Whether this gateway reconciles. The first to ask does, for as long as it asks again before its key expires."""
    seconds = int(RECONCILE_SECONDS * 3)
    if await run(redis.set(keys.GATEWAY, me, ex=seconds, nx=True)):
        return True
    if await run(redis.get(keys.GATEWAY)) != me.encode():
        return False
    await run(redis.expire(keys.GATEWAY, seconds))
    return True
