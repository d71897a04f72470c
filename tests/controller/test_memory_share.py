"""The memory of Redis is shared among the running jobs, and a job whose share is full admits no new groups."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from headrace_controller.memory_share import MemoryShare
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.history import EVENTS, event_of
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.types.job import Event
from headrace_core.types.staleness import Limits
from headrace_lab.services.jobs import stored_job


async def events(jobs: JobStore, job_id: str) -> list[Event]:
    return [event_of(job_id, entry) for entry in await jobs.history.after(job_id, 0, 99, EVENTS)]


async def test_memory_is_shared_out_among_the_jobs_under_way(redis: Redis) -> None:
    jobs, settings = JobStore(redis), Settings(redis_memory=100_000_000)
    shares = []
    for number in range(3):
        job_id = f"ftjob-{number}"
        await jobs.create(stored_job(job_id, status="running"))
        await Ledger(redis, job_id).open(Limits(2, 1, 20))
        await MemoryShare(redis, jobs, settings, "ftjob-0").update()
        shares.append((await Ledger(redis, "ftjob-0").queues()).share)
    assert 40_000_000 < shares[0] < 50_000_000
    assert shares[1] == pytest.approx(shares[0] / 2, rel=0.05)
    assert shares[2] == pytest.approx(shares[0] / 3, rel=0.05)
    await jobs.move("ftjob-2", "succeeded")
    await MemoryShare(redis, jobs, settings, "ftjob-0").update()
    assert (await Ledger(redis, "ftjob-0").queues()).share == pytest.approx(shares[0] / 2, rel=0.05)


async def test_without_a_bound_there_is_no_share_and_a_redis_of_ones_own_has_its_own(redis: Redis) -> None:
    jobs, ledger = JobStore(redis), Ledger(redis, "ftjob-1")
    await jobs.create(stored_job(status="running"))
    await ledger.open(Limits(2, 1, 20))
    share = MemoryShare(redis, jobs, Settings(), "ftjob-1")
    await share.update()
    assert (await ledger.queues()).share == 0
    await redis.config_set("maxmemory", "100000000")
    try:
        await share.update()
        assert 40_000_000 < (await ledger.queues()).share < 50_000_000
    finally:
        await redis.config_set("maxmemory", "0")


async def test_a_job_is_told_when_it_is_held_back_and_when_it_no_longer_is(redis: Redis) -> None:
    jobs, ledger = JobStore(redis), Ledger(redis, "ftjob-1")
    await jobs.create(stored_job(status="running"))
    await ledger.open(Limits(2, 4, 20))
    share = MemoryShare(redis, jobs, Settings(redis_memory=1), "ftjob-1")  # used up by all the rest
    await share.update()
    assert len((await ledger.admit("rollout-0", 0, 9, 60.0)).leases) == 2  # what a step needs
    for _ in range(3):
        await ledger.admit("rollout-0", 0, 9, 60.0)
        await share.update()
    told = await events(jobs, "ftjob-1")
    assert [(e.level, e.message.split(":")[0]) for e in told] == [("warn", "new groups wait")]
    assert told[0].data == {"reason": "memory", "bytes": 0, "share": 1, "held_back": 1}
    await share.update()
    assert [e.message for e in await events(jobs, "ftjob-1")][1:] == ["new groups wait no longer for memory in Redis"]
