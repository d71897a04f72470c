"""The queue on a real Ray: a job behind the next one costs no process, and is paused, cancelled and taken up again
without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import ray
from msgspec import structs
from ray.util import list_named_actors
from ray.util.placement_group import placement_group
from redis.asyncio import Redis

from headrace_controller.actors import PREFIX, RayControllerActors
from headrace_controller.manager import RayControllerManager
from headrace_controller.placement import NAMESPACE
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.ray_connection import RayConnection
from headrace_lab.services.jobs import stored_job
from headrace_lab.waiting import wait_until_async

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
QUEUED = 1000
WAIT_SECONDS = 120.0
"""For Ray to start or end a process, on a machine that others load."""
Gateway = Callable[[], RayControllerManager]


@pytest.fixture
async def gateway(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Makes the controllers' side of a gateway, over a Ray whose cores another job holds."""
    made: list[RayControllerManager] = []

    def another() -> RayControllerManager:
        made.append(RayControllerManager.from_config(Settings(data_dir=tmp_path), redis_server.url, redis))
        return made[-1]

    with RayConnection(None):
        group = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
        ray.get(group.ready(), timeout=60)
        yield another
        await asyncio.gather(*(controllers.close() for controllers in made))
        await another().suspend()


def with_controller() -> list[str]:
    names = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


async def until_they_are(wanted: Sequence[str]) -> None:
    await wait_until_async(
        lambda: with_controller() == list(wanted), lambda: f"controllers of {wanted}, not {with_controller()}"
    )


async def queue(jobs: JobStore, count: int) -> list[str]:
    """Oldest first."""
    settings = Hyperparameters(batch_size=4).model_dump()
    made = [stored_job(f"ftjob-{n:04}", status="queued", hyperparameters=settings) for n in range(count)]
    await asyncio.gather(*(jobs.create(structs.replace(job, created_at=float(n))) for n, job in enumerate(made)))
    return [job.id for job in made]


async def at_rest(jobs: JobStore, job_ids: Sequence[str]) -> None:
    async def rest() -> bool:
        return {s.id for s in await jobs.statuses() if s.at_rest}.issuperset(job_ids)

    await wait_until_async(rest, f"{job_ids} are at rest")


async def test_a_thousand_queued_jobs_have_one_controller_that_waits(redis: Redis, gateway: Gateway) -> None:
    jobs, controllers = JobStore(redis), gateway()
    ids = await queue(jobs, QUEUED)
    began = time.perf_counter()
    for job_id in ids[-100:]:
        await controllers.ensure(await jobs.get(job_id))
    assert time.perf_counter() - began < 2.0, "a hundred submissions waited for Ray"
    await until_they_are(ids[:1])
    began = time.process_time()
    for _ in range(5):
        await controllers.reconcile()
    assert (time.process_time() - began) / 5 < 0.25, "seconds of a core, every five seconds"
    assert with_controller() == ids[:1]
    assert len([actor for actor in ray.nodes() if actor["Alive"]]) == 1


async def test_order_pause_cancel_and_deaths_in_the_queue(redis: Redis, gateway: Gateway) -> None:
    jobs, controllers = JobStore(redis), gateway()
    ids = await queue(jobs, 6)
    await controllers.reconcile()
    await until_they_are(ids[:1])

    await jobs.move(ids[1], "paused")
    await jobs.move(ids[2], "cancelled")
    await controllers.ensure(await jobs.get(ids[1]))
    await controllers.cancel(ids[2])
    await at_rest(jobs, ids[1:3])
    assert with_controller() == ids[:1], "neither needed a controller"
    assert [event.message for _, event in await jobs.events(ids[1])] == [
        "paused before it began; resume queues it again"
    ]
    account = await Ledger(redis, ids[2]).counts()
    assert (account.admitted, account.balanced) == (0, True)

    await jobs.move(ids[0], "cancelled")  # the one that has a controller: it sees that by itself
    await at_rest(jobs, ids[:1])
    await controllers.reconcile()
    await until_they_are(ids[3:4])
    ray.kill(ray.get_actor(PREFIX + ids[3], NAMESPACE))
    await until_they_are([])
    successor = gateway()  # of a gateway that died, too
    await successor.reconcile()
    await until_they_are(ids[3:4])

    await jobs.move(ids[1], "queued")  # resumed: it is the oldest again
    await jobs.move(ids[3], "paused")
    await at_rest(jobs, ids[3:4])
    await successor.ensure(await jobs.get(ids[1]))
    await until_they_are(ids[1:2])
    assert [(await jobs.get(job_id)).status for job_id in ids] == [
        "cancelled", "queued", "cancelled", "paused", "queued", "queued",
    ]  # fmt: skip


async def test_an_error_that_nobody_foresaw_ends_the_looks_and_is_the_reconciliations(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobStore(redis)
    (job_id,) = await queue(jobs, 1)
    controllers = RayControllerManager.from_config(Settings(data_dir=tmp_path), redis_server.url, redis)
    with monkeypatch.context() as faulty:
        met = asyncio.Event()

        async def statuses(_: JobStore) -> None:
            met.set()
            raise ValueError("a fault of the service")

        async def nobody(_: RayControllerActors) -> list[str]:
            return []

        faulty.setattr(JobStore, "statuses", statuses)
        faulty.setattr(RayControllerActors, "with_controller", nobody)
        await controllers.ensure(await jobs.get(job_id))
        await asyncio.wait_for(met.wait(), timeout=WAIT_SECONDS)
        await asyncio.sleep(0.1)
    with pytest.raises(ValueError, match="a fault of the service"):
        await controllers.reconcile()
    with pytest.raises(Unavailable):  # told once; Ray is away
        await controllers.reconcile()
    await controllers.close()


async def test_a_job_is_told_that_it_cannot_start_yet_while_ray_is_away(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    jobs = JobStore(redis)
    (job_id,) = await queue(jobs, 1)
    controllers = RayControllerManager.from_config(Settings(data_dir=tmp_path), redis_server.url, redis)
    await controllers.ensure(await jobs.get(job_id))

    async def is_told() -> bool:
        return bool(await jobs.events(job_id))

    await wait_until_async(is_told, "the job is told something")
    told = await jobs.events(job_id)
    await controllers.close()
    assert told[0][1].level == "warn"
    assert told[0][1].message.startswith("Cannot start yet: Ray does not answer")
