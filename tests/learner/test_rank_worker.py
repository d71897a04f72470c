"""A learner of two ranks on a real Redis: rank 0 here, the other in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess

import msgspec
import pytest
from redis.asyncio import Redis

from headrace_core.errors import TimedOut
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import run
from headrace_learner.distributed.fsdp import RanksLost
from headrace_learner.distributed.rank_commands import CommandStream, Finish, Heartbeat, Train
from headrace_learner.worker import LearnerWorker

from .bench import STEPS, Bench, learner, train_whole
from .rank_cases import be_follower

Follow = Callable[[WorkerConfig], SpawnProcess]


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Starts rank 1 of a learner; whatever a test leaves is ended."""
    started: list[SpawnProcess] = []

    def start(config: WorkerConfig) -> SpawnProcess:
        other = msgspec.structs.replace(config, rank=1, worker="learner-rank-1")
        process = multiprocessing.get_context("spawn").Process(
            target=be_follower, args=(msgspec.msgpack.encode(other),), daemon=True
        )
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(20)


def of_start(job: Bench, name: str) -> WorkerConfig:
    return msgspec.structs.replace(job.config, ranks_start=name, start_timeout=120.0)


@pytest.mark.slow
async def test_two_ranks_end_with_the_weights_of_one_also_when_they_start_again(
    bench: Callable[..., Bench], follow: Follow
) -> None:
    two = bench("two", learning_rate=1e-3, checkpoint_interval=2, learner_ranks=2)
    followers = [follow(of_start(two, name)) for name in ("first", "second")]
    one = bench("one", learning_rate=1e-3, checkpoint_interval=2)
    await train_whole(one)
    await two.open()
    async with learner(of_start(two, "first")) as worker:
        running = asyncio.create_task(worker.run())
        await two.feed(5)
        await worker.stop()
        assert await running == "stopped"
    async with learner(of_start(two, "second")) as worker:  # from the snapshot of version 5
        ended, _ = await asyncio.gather(worker.run(), two.feed(STEPS))
        assert ended == "finished"
    for follower in followers:
        follower.join(20)
    assert [follower.exitcode for follower in followers] == [0, 0]
    expected, found = one.model(), two.model()
    assert expected.keys() == found.keys()
    assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-5
    assert (await two.ledger.counts()).states == (await one.ledger.counts()).states


@pytest.mark.slow
async def test_a_rank_that_dies_ends_the_learner_with_an_error_that_says_so(
    bench: Callable[..., Bench], follow: Follow
) -> None:
    job = bench("orphaned", learner_ranks=2)
    await job.open()
    other = follow(of_start(job, "only"))
    async with learner(of_start(job, "only")) as worker:
        running = asyncio.create_task(worker.run())
        await job.feed(1)
        other.kill()
        began = time.monotonic()
        feeding = asyncio.create_task(job.feed(2))
        with pytest.raises(RanksLost, match="rank 0 of the learner lost another rank"):
            await running
        assert time.monotonic() - began < job.config.stall_timeout
        feeding.cancel()
    assert (await job.ledger.newest())[0] == 1  # what was not whole is not settled


async def test_a_learner_whose_ranks_do_not_come_says_which(bench: Callable[..., Bench]) -> None:
    job = bench("alone", learner_ranks=2)
    await job.open()
    worker = LearnerWorker.from_config(msgspec.structs.replace(of_start(job, "lonely"), start_timeout=1.0))
    with pytest.raises(TimedOut, match="rank 1 of the learner's 2 ranks did not connect within 1 s"):
        await worker.start()
    await worker.stop()


async def test_orders_are_heard_once_in_order_and_only_of_their_start(redis: Redis) -> None:
    first, train = CommandStream(redis, "ftjob-orders", "a"), Train(0, (3, 1, 2), 4, 1e-5)
    for order in (train, Heartbeat(), Finish()):
        await first.send(order)
    await CommandStream(redis, "ftjob-orders", "b").send(Finish())
    key = "headrace:{ftjob-orders}:orders:a"
    ((_, entry),) = await run(redis.xrange(key, count=1))
    await redis.xadd(key, entry)  # as if the connection had broken before the answer
    heard = CommandStream(redis, "ftjob-orders", "a")
    assert [await heard.next(5), await heard.next(5)] == [train, Finish()]
    with pytest.raises(TimedOut, match="rank 0 of the learner sent no command and no heartbeat"):
        await heard.next(0.1)
    assert 0 < await redis.ttl(key) <= 3600
