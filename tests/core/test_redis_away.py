"""A Redis of one's own that stops, stands still or is full for a while: all go on, and the books balance."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from headrace_core.errors import RedisFull
from headrace_core.jobs.history import EVENTS
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Lease, TransitionOutcome
from headrace_core.redis_access.client import connect, is_transient, run
from headrace_core.types.job import Job
from headrace_core.types.staleness import Limits
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.training.trained_steps import step_of
from headrace_lab.waiting import wait_until_async

from .pipeline import a_group

LIMITS = Limits(batch_size=2, max_staleness=1, total_groups=60)
JOB = "ftjob-away"


def leave(server: RedisServer) -> None:
    """As by a kill: no good-bye."""
    os.kill(server.pid, signal.SIGKILL)


def come_back(server: RedisServer) -> None:
    server.launch()
    server.wait_until_ready()


async def work(ledger: Ledger, worker: str) -> int:
    """Generate until the job is done; how many groups were taken."""
    done, version = 0, 0
    while True:
        admission = await ledger.admit(worker, version, 1, 5.0)
        if admission.refusal == "closed":
            return done
        version = admission.version
        for lease in admission.leases:
            assert await ledger.commit(lease, a_group(lease.group_id, [lease.version])) is TransitionOutcome.QUEUED
            done += 1
        await asyncio.sleep(0.002)


async def learn(ledger: Ledger) -> list[int]:
    """Train all; the groups in the order in which they were trained."""
    term, trained = await ledger.enlist(), list[int]()
    while len(trained) < LIMITS.total_groups:
        claim = await ledger.claim(term, LIMITS, "mask")
        if not claim.groups:
            await ledger.signal("$", 0.05)
            continue
        groups = tuple(g.group_id for g in claim.groups)
        step = step_of(claim, LIMITS.max_staleness)
        assert await ledger.settle(term, step, f"v{claim.version + 1}") == "settled"
        trained += groups
        await ledger.forget_before(claim.version)
    await ledger.close("finished")
    return trained


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_an_outage_loses_nothing_and_trains_nothing_twice(
    own_redis: RedisServer, own_client: Redis, how: str
) -> None:
    ledger = Ledger(own_client, JOB)
    await ledger.open(LIMITS)
    workers = [asyncio.create_task(work(ledger, f"rollout-{i}")) for i in range(2)]
    learner = asyncio.create_task(learn(ledger))
    for _ in range(2):
        version = (await ledger.newest())[0]
        while (await ledger.newest())[0] < version + 5:
            await ledger.signal("$", 0.05)
        if how == "killed":
            leave(own_redis)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(come_back, own_redis)
        else:
            os.kill(own_redis.pid, signal.SIGSTOP)
            await asyncio.sleep(0.5)
            os.kill(own_redis.pid, signal.SIGCONT)
    async with asyncio.timeout(30):
        trained = await learner
        taken = await asyncio.gather(*workers)
    assert sorted(trained) == list(range(LIMITS.total_groups)), "a group was lost or trained twice"
    assert sum(taken) == LIMITS.total_groups
    books = await ledger.counts()
    assert books.balanced
    assert (books.states["trained"], books.fenced) == (LIMITS.total_groups, 0)


async def test_a_lease_does_not_end_while_nobody_can_prolong_it(own_redis: RedisServer, own_client: Redis) -> None:
    ledger = Ledger(own_client, JOB)
    await ledger.open(LIMITS)
    lease = (await ledger.admit("rollout-0", 0, 1, 0.6)).leases[0]
    os.kill(own_redis.pid, signal.SIGSTOP)
    await asyncio.sleep(0.9)
    os.kill(own_redis.pid, signal.SIGCONT)
    others = [one.group_id for one in (await ledger.admit("rollout-1", 0, 9, 0.6)).leases]
    assert lease.group_id not in others, "the other took over what could not be prolonged"
    assert await ledger.renew([lease], 0.6) == set()
    assert await ledger.commit(lease, a_group(lease.group_id, [0])) is TransitionOutcome.QUEUED
    assert (await ledger.counts()).fenced == 0


async def test_a_lease_still_ends_when_its_holder_alone_is_silent(redis: Redis) -> None:
    ledger = Ledger(redis, JOB)
    await ledger.open(Limits(1, 0, 20))
    lease = (await ledger.admit("rollout-0", 0, 1, 0.3)).leases[0]
    found: list[Lease] = []

    async def issued_again() -> bool:
        found[:] = (await ledger.admit("rollout-1", 0, 1, 0.3)).leases
        return bool(found)

    await wait_until_async(issued_again, "its group is issued again", seconds=5)
    assert found[0].group_id == lease.group_id


async def test_who_may_not_wait_hears_of_it_in_time(own_redis: RedisServer) -> None:
    async with connect(own_redis.url, wait=0.3, answer_within=0.3) as client:
        assert await client.ping()
        leave(own_redis)
        for _ in range(2):  # also where the connection is new
            began = time.monotonic()
            with pytest.raises((ConnectionError, OSError)):
                await client.get("a")
            assert time.monotonic() - began < 2.0
        await asyncio.to_thread(come_back, own_redis)
        assert await client.ping()
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            with pytest.raises((RedisTimeout, ConnectionError)):
                await client.get("a")
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)


async def test_answers_that_say_later_are_waited_for(own_client: Redis, own_redis: RedisServer) -> None:
    await own_client.execute_command("REPLICAOF", "127.0.0.1", "1")
    writing = asyncio.ensure_future(own_client.set("a", "b"))  # READONLY
    # The same, within a script.
    script = asyncio.ensure_future(own_client.eval("return redis.call('SET', 'c', 'd')", 0))
    await asyncio.sleep(0.2)
    assert not writing.done()
    assert not script.done()
    async with connect(own_redis.url, wait=0.1) as other:
        await other.execute_command("REPLICAOF", "NO", "ONE")
    assert await writing
    assert await script == b"OK"
    async with connect(own_redis.url, wait=0.1) as other:
        await other.config_set("lua-time-limit", "5")
        spinning = asyncio.ensure_future(own_client.eval("while true do end", 0))
        await asyncio.sleep(0.1)
        reading = asyncio.ensure_future(own_client.get("a"))  # BUSY
        await asyncio.sleep(0.2)
        assert not reading.done()
        await other.execute_command("SCRIPT", "KILL")
        assert await reading == b"b"
        with pytest.raises(ResponseError, match="killed"):
            await spinning


@pytest.mark.parametrize(
    ("error", "later"),
    [
        (ResponseError("LOADING Redis is loading the dataset in memory"), True),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), True),
        (ResponseError("Error running script: @user_script: 1: -OOM command not allowed"), True),
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
        (ResponseError("ERR unknown command 'OOM'"), False),
    ],
)
def test_which_answers_say_later(error: Exception, later: bool) -> None:
    assert is_transient(error) is later


async def test_scripts_are_there_again_after_a_restart(own_client: Redis, own_redis: RedisServer) -> None:
    ledger = Ledger(own_client, JOB)
    await ledger.open(LIMITS)
    await ledger.window()
    leave(own_redis)
    await asyncio.to_thread(come_back, own_redis)
    assert (await ledger.window()).version == 0


async def test_a_full_redis_refuses_groups_and_lets_a_job_pause(own_redis: RedisServer) -> None:
    async with connect(own_redis.url, wait=0.3) as client:
        ledger, jobs = Ledger(client, JOB), JobStore(client)
        await jobs.create(Job(id=JOB, created_at=1.0, model="m", model_path="/m", training_file="f", status="running"))
        await ledger.open(LIMITS)
        leases = (await ledger.admit("rollout-0", 0, 2, 60.0)).leases
        memory = await run(client.info("memory"))
        await client.config_set("maxmemory", str(int(memory["used_memory"]) - 1000))
        with pytest.raises(RedisFull, match=r"HEADRACE_REDIS_MEMORY") as error:
            await ledger.commit(leases[0], a_group(0, [0]))
        assert error.value.code == "redis_full"
        with pytest.raises(RedisFull):
            await client.set("anything", "else")
        await ledger.release(leases)
        await jobs.move(JOB, "paused")
        await jobs.emit_event(JOB, "paused", level="error")
        assert (await jobs.get(JOB)).status == "paused"
        assert len(await jobs.history.after(JOB, 0, 9, EVENTS)) == 1
        await client.config_set("maxmemory", "0")
        await jobs.move(JOB, "queued")
        again = (await ledger.admit("rollout-0", 0, 2, 60.0)).leases
        assert await ledger.commit(again[0], a_group(0, [0])) is TransitionOutcome.QUEUED
        assert (await ledger.counts()).balanced
