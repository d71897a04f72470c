"""Pages as a person sees them: Debian's Chromium over a real gateway.

Each test's browser must end without an error in its console and without a request to another host; what it should have
complained of is named with `browser.expects`. Screenshots are left in runs/browser.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from redis.asyncio import Redis
from selenium import webdriver

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import connect, run
from headrace_gateway.app import create_app
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.serve import HttpServer
from headrace_lab.browser import Browser, start_chromium
from headrace_lab.paths import ROOT
from tests.gateway.conftest import Controllers

REPORT = ROOT / "runs" / "browser"
STOP_SECONDS = 30

_T = TypeVar("_T")


class Site:
    """A gateway in a thread of its own, so that a test may wait for the browser; over the session's Redis, emptied."""

    def __init__(self, redis_url: str, settings: Settings) -> None:
        self._redis_url = redis_url
        self._settings = settings
        self.controllers = Controllers()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve until `stop`; on the same port each time."""
        app = create_app(self._settings, self._redis_url, self.controllers)
        self._server = HttpServer(app)
        sockets = [socket.create_server(("127.0.0.1", self._port))]
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), name="gateway", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, with the streams that are open."""
        self._server.should_exit = True
        self._thread.join(timeout=STOP_SECONDS)
        assert not self._thread.is_alive(), f"the gateway did not end within {STOP_SECONDS} s"

    def redis(self, work: Callable[[Redis], Awaitable[_T]]) -> _T:
        """Do this with a Redis client of its own."""

        async def connected() -> _T:
            async with connect(self._redis_url) as redis:
                return await work(redis)

        return asyncio.run(connected())

    def store(self, work: Callable[[JobStore], Awaitable[_T]]) -> _T:
        """Do this with the job store."""
        return self.redis(lambda redis: work(JobStore(redis)))


@pytest.fixture
def site(redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(redis_server.url, Settings(data_dir=tmp_path))
    site.redis(lambda redis: run(redis.flushall()))
    site.start()
    yield site
    site.stop()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[Browser]:
    browser = Browser(chromium, REPORT)
    yield browser
    browser.close()
