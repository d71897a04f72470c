"""A real gateway: uvicorn on a loopback port, over the session's Redis, with the controllers' twin in place of Ray.

Each test has a gateway of its own; the process that forks checks serves those of all tests.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest
import uvicorn.server
from fastapi import FastAPI
from openai import AsyncOpenAI
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Job
from headrace_gateway.app import create_app
from headrace_gateway.context import PRELOADED
from headrace_gateway.events.job_streams import JobStreams
from headrace_gateway.limited_processes.forked_process import ForkServer
from headrace_gateway.models.prompt_process import ENVIRONMENT
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.serve import HttpServer
from headrace_lab.waiting import wait_until_async

MODEL = "headrace/tiny-adder"
GRADER = {
    "type": "string_check",
    "name": "answer",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
MAX_UPLOAD_BYTES = 200_000


@dataclass
class Controllers:
    """The twin: remembers what it was asked for; `away` makes it as absent as a Ray that does not answer."""

    ensured: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    reconciled: asyncio.Event = field(default_factory=asyncio.Event)
    away: bool = False

    async def ensure(self, job: Job) -> None:
        self.ensured.append(job.id)

    async def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def reconcile(self) -> None:
        self.reconciled.set()

    async def ping(self) -> None:
        if self.away:
            raise Unavailable("Ray does not answer: it is away")

    async def suspend(self) -> None:
        self.ensured.clear()

    async def close(self) -> None:
        """It starts nothing."""


class SharedForkServer(ForkServer):
    """Stays when a gateway closes it. It is started and ended in a loop of its own, since a test's loop ends first."""

    def __init__(self) -> None:
        super().__init__(PRELOADED, ENVIRONMENT)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fork server")
        self._thread.start()

    async def start(self) -> None:
        await asyncio.wrap_future(self._run_there(super().start()))

    async def close(self) -> None:
        """Does nothing: `end` does."""

    def end(self) -> None:
        self._run_there(super().close()).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    def _run_there(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@pytest.fixture(scope="session")
def shared_forks() -> Iterator[ForkServer]:
    """Imports what checks need once, and not for each test that submits a job."""
    forks = SharedForkServer()
    yield forks
    forks.end()


@pytest.fixture(scope="session", autouse=True)
def uvicorn_looks_often() -> Iterator[None]:
    """uvicorn looks every 0.1 s whether it is to end, and then waits as long for connections to close: too long for
    hundreds of gateways."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
        yield


@dataclass
class Served:
    """A running gateway, and what stands behind it."""

    url: str
    jobs: JobStore
    redis: Redis
    controllers: Controllers
    data_dir: Path
    server: HttpServer
    hub: JobStreams


@asynccontextmanager
async def serving(app: FastAPI, trusted_proxies: Sequence[str] = ()) -> AsyncIterator[tuple[str, HttpServer]]:
    """(Address, server) of the app, served by uvicorn on a loopback port, as `headrace serve` does."""
    server = HttpServer(app, trusted_proxies)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await wait_until_async(lambda: server.started, "the gateway has started", pause=0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, timeout=10)


@pytest.fixture
async def served(
    redis: Redis, redis_server: RedisServer, shared_forks: ForkServer, tmp_path: Path
) -> AsyncIterator[Served]:
    settings = Settings(data_dir=tmp_path, max_upload_bytes=MAX_UPLOAD_BYTES)
    controllers = Controllers()
    app = create_app(settings, redis_server.url, controllers, fork_server=shared_forks)
    async with serving(app) as (url, server):
        yield Served(url, JobStore(redis), redis, controllers, tmp_path, server, app.state.gateway.hub)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def rows(count: int, prompt: str = "What is 37 + 56?") -> bytes:
    """A data file of `count` rows."""
    row = {"messages": [{"role": "user", "content": prompt}], "answer": "93"}
    return (json.dumps(row) + "\n").encode() * count


class Upload(TypedDict):
    """What a POST to `/v1/files` is made of, for httpx."""

    files: dict[str, tuple[str, bytes]]
    data: dict[str, str]


def upload(content: bytes, name: str = "a.jsonl") -> Upload:
    return {"files": {"file": (name, content)}, "data": {"purpose": "fine-tune"}}


def body(training_file: str, **changes: Any) -> dict[str, Any]:
    """The body of a good request, with `hyperparameters`, `grader` or top-level fields changed."""
    hyperparameters = {"n_steps": 3, "batch_size": 4, **changes.pop("hyperparameters", {})}
    reinforcement = {"grader": changes.pop("grader", GRADER), "hyperparameters": hyperparameters}
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    return {"model": MODEL, "training_file": training_file, "method": method} | changes


@pytest.fixture
async def training_file(client: AsyncOpenAI) -> str:
    uploaded = await client.files.create(file=("train.jsonl", rows(8)), purpose="fine-tune")
    return uploaded.id
