"""A gateway whose Redis or disk is away or full answers soon, says what is wrong, and goes on; memory is shared out."""

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

from headrace_controller.memory_share import MemoryShare
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.history import EVENTS
from headrace_core.jobs.job_store import Event, JobStore, event_of
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.client import connect
from headrace_core.types.staleness import Limits
from headrace_gateway.app import create_app
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.serve import HttpServer, serve_over

from .conftest import Controllers, rows, stored_job
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
        upload = {"files": {"file": ("a.jsonl", rows(40_000))}, "data": {"purpose": "fine-tune"}}
        answer = await http.post("/v1/files", **upload)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
        assert str(small_disk) in answer.json()["error"]["message"]
        assert list((small_disk / "files").iterdir()) == []
        small = {"files": {"file": ("a.jsonl", rows(4))}, "data": {"purpose": "fine-tune"}}
        assert (await http.post("/v1/files", **small)).status_code == 200


async def events(jobs: JobStore, job_id: str) -> list[Event]:
    return [event_of(job_id, entry) for entry in await jobs.history.after(job_id, 0, 99, EVENTS)]


async def test_memory_is_shared_out_among_the_jobs_under_way(redis: Redis) -> None:
    jobs, settings = JobStore(redis), Settings(redis_memory=100_000_000)
    shares = []
    for number in range(3):
        job_id = f"ftjob-{number}"
        await jobs.create(stored_job(job_id, status="running"))
        await Ledger(redis, job_id).open(Limits(2, 1, 20))
        await MemoryShare(redis, jobs, settings, "ftjob-0").look()
        shares.append((await Ledger(redis, "ftjob-0").queues()).share)
    assert 40_000_000 < shares[0] < 50_000_000
    assert shares[1] == pytest.approx(shares[0] / 2, rel=0.05)
    assert shares[2] == pytest.approx(shares[0] / 3, rel=0.05)
    await jobs.move("ftjob-2", "succeeded")
    await MemoryShare(redis, jobs, settings, "ftjob-0").look()
    assert (await Ledger(redis, "ftjob-0").queues()).share == pytest.approx(shares[0] / 2, rel=0.05)


async def test_without_a_bound_there_is_no_share_and_a_redis_of_ones_own_has_its_own(redis: Redis) -> None:
    jobs, ledger = JobStore(redis), Ledger(redis, "ftjob-1")
    await jobs.create(stored_job(status="running"))
    await ledger.open(Limits(2, 1, 20))
    share = MemoryShare(redis, jobs, Settings(), "ftjob-1")
    await share.look()
    assert (await ledger.queues()).share == 0
    await redis.config_set("maxmemory", "100000000")
    try:
        await share.look()
        assert 40_000_000 < (await ledger.queues()).share < 50_000_000
    finally:
        await redis.config_set("maxmemory", "0")


async def test_a_job_is_told_when_it_is_held_back_and_when_it_no_longer_is(redis: Redis) -> None:
    jobs, ledger = JobStore(redis), Ledger(redis, "ftjob-1")
    await jobs.create(stored_job(status="running"))
    await ledger.open(Limits(2, 4, 20))
    share = MemoryShare(redis, jobs, Settings(redis_memory=1), "ftjob-1")  # used up by all the rest
    await share.look()
    assert len((await ledger.admit("rollout-0", 0, 9, 60.0)).leases) == 2  # what a step needs
    for _ in range(3):
        await ledger.admit("rollout-0", 0, 9, 60.0)
        await share.look()
    told = await events(jobs, "ftjob-1")
    assert [(e.level, e.message.split(":")[0]) for e in told] == [("warn", "new groups wait")]
    assert told[0].data == {"reason": "memory", "bytes": 0, "share": 1, "held_back": 1}
    await share.look()
    assert [e.message for e in await events(jobs, "ftjob-1")][1:] == ["new groups wait no longer for memory in Redis"]


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
