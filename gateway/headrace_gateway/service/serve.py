"""`headrace serve`: without settings, everything runs on this machine.

    data folder locked ─► port bound ─► Redis ─► Ray ─► gateway, until Ctrl-C or SIGTERM
                                          │      │        │
                                          supervised      │ no new connections; streams end
                    unlocked ◄─ Redis ends ◄─ Ray ends ◄─ controllers suspend: jobs stay as they are

Invariants: every started part is ended, in reverse order, whatever fails; a job that has not ended when the server
stops continues at the next start; nothing listens beyond `settings.host`, loopback by default.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

import ray
import uvicorn
import uvloop
from fastapi import FastAPI
from redis.asyncio import Redis

from headrace_controller.manager import RayControllerManager
from headrace_core.concurrency import cancel
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.logs import get_logger, log_libraries, redact_streams
from headrace_core.redis_access.client import connect, connect_for_requests, ping, run
from headrace_core.redis_address import masked
from headrace_core.restart_budget import RestartBudget

from .. import allocator
from ..app import create_app
from ..auth.api_keys import KeyStore
from ..chat.chat_pool import RayChatPool
from ..context import GatewayContext
from . import data_folder_lock
from .bounded_http import BoundedRequests
from .embedded_redis import RedisServer
from .part_supervisor import PartSupervisor, ServicePart
from .ray_connection import RayConnection
from .redis_program import Version, version_from

_STREAMS_END_SECONDS = 3


def serve(settings: Settings, announce: Callable[[str, bool], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. `announce` is called with the address once all parts are ready, and with whether
    any request can be accepted: if keys are required, there may be none yet.

    Raises `InvalidState` for a data folder in use, `Unavailable` for a port in use or a part that does not start.
    """
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    redact_streams()
    log_libraries()
    allocator.configure()
    with ExitStack() as parts:
        parts.enter_context(_interrupted_by_sigterm())
        if settings.models_dir is not None and not settings.models_dir.is_dir():
            raise InvalidRequest(f"models_dir: {settings.models_dir} is no folder: name one that holds models")
        parts.enter_context(data_folder_lock.held(settings.data_dir))
        listener = parts.enter_context(_listener(settings.host, settings.port))
        own = settings.redis_address
        redis = parts.enter_context(_embedded_redis(settings)) if own is None else own
        connection = parts.enter_context(RayConnection(_ray_address(settings)))
        uvloop.run(_run(settings, redis, connection, listener, announce))


async def _run(
    settings: Settings,
    of: str | RedisServer,
    connection: RayConnection,
    listener: socket.socket,
    announce: Callable[[str, bool], None],
) -> None:
    redis_url = of if isinstance(of, str) else of.url
    parts: list[ServicePart] = [connection] if isinstance(of, str) else [of, connection]
    redis = connect(redis_url, settings.redis_wait)
    try:
        if isinstance(of, str):
            await _wait_for(redis_url, redis, settings.redis_wait)
            _warn_of_flaws(version_from(await run(redis.info("server"))))
        server = _SignalledServer(create_app(settings, redis_url), settings.trusted_proxies)
        host, port = listener.getsockname()[:2]
        announce(f"http://{host}:{port}", not settings.keys_required or await KeyStore(redis).any_valid())
        await serve_over(parts, server, listener, JobStore(redis), settings)
        if _ray_address(settings) is None and ray.is_initialized():  # an external cluster continues
            controllers, chats = (
                RayControllerManager.from_config(settings, redis_url, redis),
                RayChatPool(settings, redis),
            )
            await asyncio.gather(controllers.suspend(), chats.stop())
    finally:
        await redis.aclose()


async def serve_over(
    parts: Sequence[ServicePart], server: HttpServer, listener: socket.socket, jobs: JobStore, settings: Settings
) -> None:
    """Serve until the server is told to end. Raises the error of a part that cannot be restarted, after all
    requests."""
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="serve")
    supervisors = [
        PartSupervisor(part, jobs, RestartBudget(settings.max_restarts, settings.restart_window)) for part in parts
    ]
    supervising = [asyncio.create_task(supervisor.run(), name="keep a part alive") for supervisor in supervisors]
    await asyncio.wait([serving, *supervising], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    given_up = [task for task in supervising if task.done()]
    await cancel([task for task in supervising if not task.done()])
    for task in given_up:
        await task


class HttpServer(uvicorn.Server):
    """Serves an app until `should_exit`. Event streams end first, so that the shutdown need not wait for them."""

    def __init__(self, app: FastAPI, trusted_proxies: Sequence[str] = ()) -> None:
        """`trusted_proxies`: addresses of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted."""
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedRequests,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                timeout_graceful_shutdown=_STREAMS_END_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Set TCP_NODELAY: a response's head and body are two writes, and by Nagle's algorithm the second would wait 40
        ms for the acknowledgement of the first. uvloop sets it by itself, asyncio only for sockets that it creates."""
        for listener in sockets or ():
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connections, end streams, and give requests in progress a few seconds."""
        gateway: GatewayContext = self._app.state.gateway
        gateway.hub.close()
        await super().shutdown(sockets)


class _SignalledServer(HttpServer):
    """Ends at a signal without raising it again, because the parts still have to be ended."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the fork server too, so that it has imported everything before the first check."""
        await super().startup(sockets)
        if self.should_exit:  # the app could not start
            return
        gateway: GatewayContext = self._app.state.gateway  # made at the app's own start
        if gateway.fork_server is not None:
            await gateway.fork_server.start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C while parts start or end."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    with listener:
        yield listener


@contextmanager
def _embedded_redis(settings: Settings) -> Iterator[RedisServer]:
    server = RedisServer(
        settings.data_dir / "redis", settings.start_timeout, settings.redis_memory, settings.redis_server
    )
    server.start()
    _warn_of_flaws(server.version)
    try:
        yield server
    finally:
        server.stop()


async def _wait_for(url: str, redis: Redis, seconds: float) -> None:
    """Wait until the Redis at `url` answers, and log a warning if that takes time. Raises `Unavailable`."""
    asking = connect_for_requests(url)
    try:
        await ping(asking)
    except Unavailable as error:
        get_logger(__name__).warning(
            "waiting for Redis; Ctrl-C ends it", seconds=seconds, address=masked(url), error=error.message
        )
        await ping(redis)
    finally:
        await asking.aclose()


def _warn_of_flaws(version: Version | None) -> None:
    if version is not None and version.flaws is not None:
        get_logger(__name__).warning(version.flaws)


def _ray_address(settings: Settings) -> str | None:
    return settings.ray_address or os.environ.get("RAY_ADDRESS")
