"""schemathesis over the whole OpenAPI document: no request that it makes ends in a 5xx, or in an answer off its schema.

The gateway is a real one, over a real Redis with jobs in every state; most requests name things that are there. What is
generated follows from the document alone: the same requests every time.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headrace_core.config.service_settings import Settings
from headrace_core.redis_access.client import connect
from headrace_gateway.app import create_app
from headrace_gateway.openapi.document import operations
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.waiting import wait_until

from .conftest import Controllers
from .seeded_world import World, seeded
from .test_chat_routes import LocalChats

AT_LEAST = 5000
EACH = 150
"""Requests by chance for each route; those at the borders of what it takes come beside them."""
SLOW = ["chat_create", "graders_run", "graders_validate", "jobs_events", "observe_stream"]
"""Routes that start a process, generate, or wait for what comes next: a tenth of that, and no borders."""
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
ENDED = ["ftjob-succeeded0", "ftjob-failed0", "ftjob-cancelled0", "ftjob-none"]

DOCUMENT = create_app(Settings(), "redis://127.0.0.1:1").openapi()
SUBMITTED = {
    o["operationId"]: o["requestBody"]["content"]["application/json"]["example"]
    for _, _, o in operations(DOCUMENT)
    if o["operationId"] in ("jobs_create", "control_fork")
}
"""What makes a job."""
GOOD_OF = {"jobs_create": 64, "control_fork": 16}
"""Of how many of these requests one is good: each starts a process that checks the grader."""


def _schema() -> schemathesis.BaseSchema:
    made = schemathesis.openapi.from_dict(DOCUMENT)
    made.config.generation.update(deterministic=True, with_security_parameters=False)
    return made


fast, slow = _schema().exclude(operation_id=SLOW), _schema().include(operation_id=SLOW)
brief = _schema().exclude(operation_id=SLOW)
brief.config.phases.coverage.enabled = False
slow.config.phases.coverage.enabled = False
_settings = settings(max_examples=EACH, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@dataclass
class Tried:
    """A gateway under test, and what came of the requests to it."""

    url: str
    redis_url: str
    data_dir: Path
    session: requests.Session
    world: World = field(default_factory=World)
    operation: str = ""
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)

    def seed(self) -> None:
        """Everything anew."""
        self.world = asyncio.run(self._seeded())

    async def _seeded(self) -> World:
        redis = connect(self.redis_url)
        try:
            return await seeded(redis, self.data_dir)
        finally:
            await redis.aclose()


class _Serving(threading.Thread):
    """The gateway, in a thread of its own, because schemathesis asks synchronously."""

    def __init__(self, redis_url: str, data_dir: Path) -> None:
        super().__init__(name="gateway")
        self._chats = LocalChats()
        self._settings = Settings(data_dir=data_dir, requests_per_minute=0)
        app = create_app(self._settings, redis_url, Controllers(), self._chats)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        await self.server.serve()
        await self._chats.stop()

    def address(self) -> str:
        wait_until(lambda: self.server.started, "the gateway has started", pause=0.01)
        return "http://{}:{}".format(*self.server.servers[0].sockets[0].getsockname())


@pytest.fixture(scope="module")
def tried(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    data_dir = tmp_path_factory.mktemp("data")
    serving = _Serving(redis_server.url, data_dir)
    serving.start()
    with requests.Session() as session:
        yield Tried(serving.address(), redis_server.url, data_dir, session)
    serving.server.should_exit = True
    serving.join(timeout=30)
    assert not serving.is_alive()


def _ask(case: schemathesis.Case, tried: Tried) -> None:
    operation = case.operation.definition.raw["operationId"]
    if tried.operation != operation:  # what the requests to the one before have changed is not there any more
        tried.operation = operation
        tried.seed()
    _name_what_is_there(case, tried, operation)
    response = case.call(base_url=tried.url, session=tried.session, timeout=60)
    tried.answers[operation, response.status_code] += 1
    case.validate_response(response, checks=CHECKS)


def _name_what_is_there(case: schemathesis.Case, tried: Tried, operation: str) -> None:
    """In three of four requests; which ones, and what, follows from the request."""
    chance = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
    good = SUBMITTED.get(operation)
    if good is not None and isinstance(case.body, dict):
        if chance % GOOD_OF[operation] == 0:
            case.body = good
            for name in case.path_parameters or {}:
                case.path_parameters[name] = ENDED[0]
            return
        if case.body != good:
            case.body["training_file"] = "file-none"  # refused before a process checks the grader
    if chance % 4:
        for name in case.path_parameters or {}:
            known = ENDED if operation in SLOW and name == "job_id" else tried.world.ids[name]
            case.path_parameters[name] = known[chance // 4 % len(known)]


@brief.parametrize()
@settings(_settings, max_examples=EACH // 15)
def test_routes_briefly(case: schemathesis.Case, tried: Tried) -> None:
    """What the fast tier runs: requests by chance alone."""
    _ask(case, tried)


@pytest.mark.slow
@slow.parametrize()
@settings(_settings, max_examples=EACH // 10)
def test_slow_routes(case: schemathesis.Case, tried: Tried) -> None:
    _ask(case, tried)


@pytest.mark.slow
@fast.parametrize()
@_settings
def test_routes(case: schemathesis.Case, tried: Tried) -> None:
    _ask(case, tried)


@pytest.mark.slow
def test_enough_was_asked_and_most_of_it_found(tried: Tried) -> None:
    """Of every route that has one, also the good answer."""
    by_route: dict[str, Counter[int]] = {}
    for (operation, status), count in tried.answers.items():
        by_route.setdefault(operation, Counter())[status] += count
    for operation, statuses in sorted(by_route.items()):
        print(operation, dict(statuses))
    print(tried.answers.total(), "requests")
    assert tried.answers.total() >= AT_LEAST
    assert not [operation for operation, statuses in by_route.items() if not statuses[200]]
