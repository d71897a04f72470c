"""A gateway whose Redis or disk is away or full answers soon, says what is wrong, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import connect
from headrace_gateway.app import create_app
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.serve import HttpServer, serve_over
from headrace_lab.services.jobs import stored_job

from .conftest import Controllers, rows, upload
from .keyed import gateway

SOON = 10.0
"""Seconds; a worker waits for minutes."""


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.slow
async def test_requests_are_answered_while_redis_is_away(tmp_path: Path, how: str) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    async with connect(server.url) as redis, gateway(Settings(data_dir=tmp_path), redis, server.url) as served:
        await JobStore(redis).create(stored_job(status="running"))
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
            assert (await http.get("/v1/fine_tuning/jobs")).status_code == 200
            os.kill(server.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/ftjob-1/queues"):
                began = time.monotonic()
                answer = await http.get(path)
                assert time.monotonic() - began < SOON
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert "Redis does not answer" in answer.json()["error"]["message"]
            if how == "killed":
                server.launch()
                await asyncio.to_thread(server.wait_until_ready)
            else:
                os.kill(server.pid, signal.SIGCONT)
            assert (await http.get("/v1/fine_tuning/jobs")).status_code == 200
    server.stop()


async def test_an_upload_that_finds_no_room_is_answered_so_and_leaves_nothing(
    redis: Redis, redis_server: RedisServer, small_disk: Path
) -> None:
    settings = Settings(data_dir=small_disk, max_upload_bytes=10_000_000)
    async with gateway(settings, redis, redis_server.url) as served, served.http() as http:
        answer = await http.post("/v1/files", **upload(rows(40_000)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
        assert str(small_disk) in answer.json()["error"]["message"]
        assert list((small_disk / "files").iterdir()) == []
        assert (await http.post("/v1/files", **upload(rows(4)))).status_code == 200


async def test_the_service_answers_again_after_its_redis_died_and_ends_when_it_cannot(tmp_path: Path) -> None:
    redis_server = RedisServer(tmp_path / "redis")
    redis_server.start()
    settings = Settings(data_dir=tmp_path, max_restarts=1)
    server = HttpServer(create_app(settings, redis_server.url, Controllers()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/fine_tuning/jobs"
        async with connect(redis_server.url) as redis, httpx.AsyncClient(timeout=30) as http:
            serving = asyncio.create_task(serve_over([redis_server], server, listener, JobStore(redis), settings))
            assert (await http.get(url)).status_code == 200
            os.kill(redis_server.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while (await http.get(url)).status_code == 503:
                    pass
            assert (await http.get(url)).status_code == 200
            os.kill(redis_server.pid, signal.SIGKILL)
            with pytest.raises(Unavailable, match="used up its restarts"):
                await asyncio.wait_for(serving, timeout=30)
    redis_server.stop()
