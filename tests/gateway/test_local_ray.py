"""Ray of our own, whose processes die: it is started again, jobs are told, and nothing is left of either."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from msgspec import structs
from redis.asyncio import Redis

from headrace_controller.actors import PREFIX, JobControllerActor
from headrace_controller.heartbeat import ControllerHeartbeats
from headrace_controller.manager import RayControllerManager
from headrace_controller.placement import NAMESPACE
from headrace_core.concurrency import cancel
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.history import EVENTS, event_of
from headrace_core.jobs.job_store import JobStore
from headrace_core.restart_budget import RestartBudget
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.part_supervisor import PartSupervisor
from headrace_gateway.service.ray_connection import RayConnection
from headrace_lab.services.jobs import stored_job
from headrace_lab.waiting import wait_until_async

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def before(redis: Redis) -> set[psutil.Process]:
    """What is below this process when the test begins: Redis, and perhaps a browser."""
    return set(psutil.Process().children(recursive=True))


def ours(before: set[psutil.Process]) -> dict[str, psutil.Process]:
    """Processes of Ray below this one, by their names."""
    return {p.name(): p for p in psutil.Process().children(recursive=True) if p not in before}


def folders() -> list[Path]:
    return [held.parent for held in Path("/tmp").glob("headrace-ray-*/held") if held.read_text() == f"{os.getpid()}\n"]


async def test_either_of_its_processes_may_die(redis: Redis, before: set[psutil.Process]) -> None:
    jobs = JobStore(redis)
    await jobs.create(stored_job(status="running"))
    with RayConnection(None) as connection:
        keeping = asyncio.create_task(PartSupervisor(connection, jobs, RestartBudget(2, 600.0, first=0.1)).run())
        for number, name in enumerate(("raylet", "gcs_server"), 1):
            ours(before)[name].kill()
            async with asyncio.timeout(120):
                while not (told := await jobs.history.after("ftjob-1", number - 1, 9, EVENTS, block=1.0)):
                    pass
            event = event_of("ftjob-1", told[-1])
            assert event.message == (
                f"ray lost its {name} and was started again after {0.1 * number:g} s, restart {number} of 2"
            )
            assert (event.level, (event.data or {})["worker"]) == ("warn", "ray")
            assert len(folders()) == 1
            assert [node["Alive"] for node in ray.nodes()] == [True]
        ours(before)["raylet"].kill()
        with pytest.raises(Unavailable, match="ray lost its raylet, and has used up its restarts"):
            await asyncio.wait_for(keeping, 30)
    assert not ours(before)
    assert not folders()


async def test_what_a_gateway_began_before_it_died_is_finished(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A controller that was started and not told to run; a job that was stored and not queued."""
    job, settings, jobs = stored_job(status="queued"), Settings(data_dir=tmp_path), JobStore(redis)
    await jobs.create(job)
    for name, created_at in (("ftjob-stored", 0.0), ("ftjob-now", time.time())):
        await jobs.create(structs.replace(stored_job(), id=name, created_at=created_at, status="validating_files"))
    controllers, beats = (
        RayControllerManager.from_config(settings, redis_server.url, redis),
        ControllerHeartbeats(redis, settings),
    )
    with RayConnection(None):
        await beats.record_start(job.id)
        ray.remote(JobControllerActor).options(
            name=PREFIX + job.id, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_concurrency=16
        ).remote(settings, redis_server.url, job.id)
        async with asyncio.timeout(60):
            while job.id in await beats.starting([job.id]):
                await controllers.reconcile()
        assert await beats.missing([job.id]) == []
        assert (await jobs.get("ftjob-stored")).status != "validating_files"
        assert (await jobs.get("ftjob-now")).status == "validating_files", "its gateway is at work on it"
    messages = [event.message for _, event in await jobs.events("ftjob-stored")]
    assert "Queued: the gateway that had taken it in died before it could" in messages


ALONE = """
import json, os
from pathlib import Path
from headrace_gateway.service.ray_connection import RayConnection

with RayConnection(None):
    held = (path for path in Path("/tmp").glob("headrace-ray-*/held") if path.read_text() == f"{os.getpid()}\\n")
    folder, token = next(held).parent, Path.home() / ".ray" / "auth_token"
    logs = len([*folder.rglob("gcs_server*")])
    print(json.dumps([folder.stat().st_mode & 0o777, logs > 0, token.stat().st_mode & 0o777, len(token.read_text())]))
"""


def test_no_other_user_can_enter_its_folder_or_read_its_token(tmp_path: Path) -> None:
    """In a process of its own: Ray reads its token once in one."""
    tokens = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    told = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={name: value for name, value in os.environ.items() if name not in tokens} | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert json.loads(told.stdout.splitlines()[-1]) == [0o700, True, 0o600, 64]


async def test_who_asks_while_there_is_none_is_refused(redis: Redis) -> None:
    with RayConnection(None):
        pass
    with pytest.raises(ray.exceptions.RaySystemError):
        ray.nodes()
    assert not ray.is_initialized()


async def test_an_end_comes_behind_a_restart_that_is_under_way(redis: Redis, before: set[psutil.Process]) -> None:
    with RayConnection(None) as connection:
        keeping = asyncio.create_task(
            PartSupervisor(connection, JobStore(redis), RestartBudget(1, 600.0, first=0.0)).run()
        )
        ours(before)["raylet"].kill()
        await wait_until_async(lambda: not ray.is_initialized(), "the restart has begun", pause=0.01)
        await cancel([keeping])
    assert not ray.is_initialized()
    assert not ours(before)
