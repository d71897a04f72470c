"""Redis gone for a minute, Redis full, a disk that is full: jobs wait or pause with the reason, and go on, whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.small_disks import fill, own_disk
from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

AWAY_SECONDS = 60.0
WAIT_SECONDS = 5.0
"""Of those services that shall soon give up waiting for Redis or for room."""
WORKERS = ("learner", "rollout-0")
STEPS, BATCH = 24, 4


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints of a small job and one that is being written, and some more."""
    with own_disk(tmp_path / "disk", 96) as folder:
        yield folder


def served(data_dir: Path, own: RedisServer | None, wait: float) -> Service:
    environment = {"HEADRACE_REDIS_WAIT": f"{wait:g}"}
    return Service(data_dir, environment | ({} if own is None else {"HEADRACE_REDIS_URL": own.url}))


def not_ready(service: Service) -> str:
    """Why; empty where it is ready."""
    answer = httpx.get(f"{service.address}/readyz", timeout=30)
    return "" if answer.is_success else str(answer.json()["error"]["message"])


def paused_by(service: Service, job_id: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = service.get(f"/v1/fine_tuning/jobs/{job_id}")["paused_by"]
    return found


def resume(service: Service, job_id: str) -> None:
    wait_until(lambda: any("resume goes on from here" in m for m in service.messages(job_id)), "it has paused")
    httpx.post(f"{service.address}/v1/fine_tuning/jobs/{job_id}/resume", timeout=30).raise_for_status()


def check_ended_whole(service: Service, job_id: str) -> None:
    service.wait(job_id, "succeeded")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == STEPS * BATCH
    assert ledger["largest_age"] <= 4
    assert sorted({s["step"] for s in service.metrics(job_id, "step")}) == list(range(1, STEPS + 1))


def test_a_job_outlives_a_minute_without_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    service = served(tmp_path / "data", own_redis, 120)
    job_id = service.submit(n_steps=STEPS, checkpoint_interval=5)
    service.wait_for_step(job_id, 3)
    workers = {worker: service.pid_of(job_id, worker) for worker in WORKERS}
    os.kill(own_redis.pid, signal.SIGKILL)
    until = time.monotonic() + AWAY_SECONDS
    while time.monotonic() < until:
        assert "Redis" in not_ready(service)
        time.sleep(1.0)
    assert all(psutil.pid_exists(pid) for pid in workers.values())
    own_redis.launch()
    own_redis.wait_until_ready()
    wait_until(lambda: not not_ready(service), "the service is ready again")
    check_ended_whole(service, job_id)
    assert {worker: service.pid_of(job_id, worker) for worker in WORKERS} == workers
    assert service.stop() == 0


def test_a_job_pauses_where_redis_stays_full_and_goes_on_when_there_is_room(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    service = served(tmp_path / "data", own_redis, WAIT_SECONDS)
    job_id = service.submit(n_steps=STEPS, checkpoint_interval=5)
    service.wait_for_step(job_id, 3)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)
        service.wait(job_id, "paused")
        assert (paused_by(service, job_id) or {})["code"] == "redis_full"
        client.config_set("maxmemory", 0)
    resume(service, job_id)
    check_ended_whole(service, job_id)
    assert service.stop() == 0


def test_a_job_pauses_where_its_disk_stays_full_and_goes_on_when_there_is_room(
    own_redis: RedisServer, disk: Path
) -> None:
    service = served(disk / "data", own_redis, WAIT_SECONDS)
    job_id = service.submit(n_steps=STEPS, checkpoint_interval=3)
    service.wait_for_step(job_id, 4)
    in_the_way = fill(disk, 2**20)
    service.wait(job_id, "paused")
    why = paused_by(service, job_id) or {}
    assert why["code"] == "disk_full"
    assert str(disk) in why["message"]
    in_the_way.unlink()
    resume(service, job_id)
    check_ended_whole(service, job_id)
    assert service.stop() == 0


def test_a_data_folder_that_is_full_stops_all_and_all_goes_on_when_there_is_room(disk: Path) -> None:
    """Its Redis is on that disk, too: nothing can even be marked as paused."""
    service = served(disk / "data", None, WAIT_SECONDS)
    job_id = service.submit(n_steps=STEPS, checkpoint_interval=3)
    service.wait_for_step(job_id, 4)
    in_the_way = fill(disk, 0)
    wait_until(lambda: "No space left on device" in not_ready(service), "the service says what is wrong")
    time.sleep(2 * WAIT_SECONDS)  # longer than anybody waits for Redis
    assert "No space left on device" in not_ready(service)
    in_the_way.unlink()
    wait_until(lambda: not not_ready(service), "the service is ready again")
    check_ended_whole(service, job_id)
    assert service.stop() == 0
