"""A job's history: numbers without a gap, whatever writes at once; what is kept of it, and what it amounts to."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from headrace_core.jobs import history as history_module
from headrace_core.jobs.history import EVENTS, KINDS, History, HistoryEntry, Spark
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job
from headrace_core.types.metrics import AgeMetrics, StepMetrics, UpdateMetrics, WorkerMetrics

JOB = "ftjob-a"


def a_step(number: int, reward: float | None = 0.5, age: int = 0, time: float | None = None) -> StepMetrics:
    of_age = AgeMetrics(tokens=9, masked=0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    too_old = AgeMetrics(tokens=9, masked=9, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    fields: dict[str, Any] = dict.fromkeys(StepMetrics.__struct_fields__, 0.0)
    fields |= {"step": number, "total_steps": 5000, "time": number if time is None else time}
    fields |= {"seconds": {}, "extra": {}, "components": {}}
    fields |= {"reward_mean": reward, "ages": {str(age): of_age, "99": too_old}}
    fields |= dict.fromkeys(("groups", "completions", "tokens", "masked_tokens"), 4)
    return StepMetrics(**fields)


def an_update(worker: str, version: int) -> UpdateMetrics:
    return UpdateMetrics(
        worker=worker, time=1.0, version=version, staged_seconds=0.1, paused_seconds=0.01, requests_in_flight=3
    )


def a_heartbeat(worker: str, time: float) -> WorkerMetrics:
    return WorkerMetrics(worker=worker, role="rollout", time=time, version=0, uptime=time, busy=time, waiting={})


@pytest.fixture
def history(redis: Redis) -> History:
    return History(redis)


async def everything(history: History, count: int = 1000) -> list[HistoryEntry]:
    """Read as a follower reads: page by page, until nothing comes."""
    found: list[HistoryEntry] = []
    while page := await history.after(JOB, found[-1].number if found else 0, count):
        found += page
    return found


async def spark(redis: Redis) -> Spark:
    return msgspec.json.decode(await run(redis.hget(JobKeys(JOB).summary, "spark")), type=Spark)


async def test_writers_at_once_number_without_a_gap_and_readers_miss_nothing(history: History) -> None:
    async def write(worker: str) -> None:
        for version in range(100):
            await history.record(JOB, an_update(worker, version))
            await history.append_event(JOB, f'"{worker} {version}"'.encode(), float(version))
            await history.record(JOB, a_heartbeat(worker, float(version)))

    async def read(count: int) -> list[HistoryEntry]:
        found: list[HistoryEntry] = []
        async with asyncio.timeout(30):
            while len(found) < 1200:
                found += await history.after(JOB, found[-1].number if found else 0, count, block=1.0)
        return found

    readers = [asyncio.create_task(read(count)) for count in (1, 3, 50, 10_000)]
    await asyncio.gather(*(write(f"rollout-{i}") for i in range(4)))
    seen = [await reader for reader in readers]
    assert all([e.number for e in one] == list(range(1, 1201)) for one in seen)
    assert seen[0] == seen[1] == seen[2] == seen[3] == await everything(history, 7)
    of_one = [msgspec.json.decode(e.data)["version"] for e in seen[0] if e.source == "update rollout-2"]
    assert of_one == list(range(100))  # what one writer wrote stays in its order


async def test_a_page_ends_where_all_kinds_are_complete(history: History) -> None:
    for version in range(10):
        await history.record(JOB, an_update("rollout-0", version))
    await history.append_event(JOB, b'"late"', 1.0)
    assert [e.number for e in await history.after(JOB, 0, 4)] == [1, 2, 3, 4]  # not the event, which comes after others
    assert [e.number for e in await history.after(JOB, 8, 4)] == [9, 10, 11]
    assert [e.number for e in await history.after(JOB, 0, 4, kinds=EVENTS)] == [11]
    assert await history.after(JOB, 11, 4) == []


async def test_a_call_that_arrives_twice_counts_once(history: History, redis: Redis) -> None:
    for _ in range(2):
        await history.record(JOB, a_step(1))
    assert await history.append_event(JOB, b'"x"', 1.0) == await history.append_event(JOB, b'"x"', 1.0) == 2
    assert [e.number for e in await everything(history)] == [1, 2]
    assert (await spark(redis)).count == [1]


async def test_events_are_read_backwards_from_any_place(history: History) -> None:
    for i in range(5):
        await history.append_event(JOB, f'"{i}"'.encode(), float(i))
        await history.record(JOB, an_update("rollout-0", i))
    assert [e.number for e in await history.newest(JOB, "event", None, 2)] == [9, 7]
    assert [e.number for e in await history.newest(JOB, "event", 7, 9)] == [5, 3, 1]
    assert await history.newest(JOB, "event", 1, 9) == []


async def test_a_step_is_found_by_its_number(history: History) -> None:
    assert await history.before_step(JOB, 1) == 0
    for number in (1, 2, 5):  # 3 and 4 were settled by a learner that died before it recorded them
        await history.record(JOB, an_update("rollout-0", number))
        await history.record(JOB, a_step(number))
    assert [await history.before_step(JOB, step) for step in (0, 1, 2, 3, 5, 6)] == [1, 1, 3, 5, 5, 6]


async def test_heartbeats_thin_out_and_nothing_else_does(redis: Redis) -> None:
    history = History(redis, max_heartbeats=50)
    for i in range(1000):
        await history.record(JOB, a_heartbeat("rollout-0", 2.0 * i))
        if i % 10 == 0:
            await history.record(JOB, an_update("rollout-0", i))
            await history.record(JOB, a_heartbeat("rollout-1", 2.0 * i))
    found = await everything(history)
    kept = [msgspec.json.decode(e.data)["time"] for e in found if e.source == "worker rollout-0"]
    assert kept[:50] == [2.0 * i for i in range(50)]
    assert len(kept) < 50 * (1 + 3.1)  # and one more for each 1/50 of the time: 50 ln(1998/98)
    assert max(b - a for a, b in pairwise(kept)) <= 1998 / 50 + 2
    assert [e.kind for e in found].count("update") == 100
    assert [e.source for e in found].count("worker rollout-1") > 50  # sources thin out apart from each other
    newest = await run(redis.hget(JobKeys(JOB).summary, "worker rollout-0"))
    assert msgspec.json.decode(newest)["time"] == 1998.0


async def a_long_job(history: History, steps: int) -> list[HistoryEntry]:
    """Steps, three workers of which one beats seldom, an event for each step; everything that there is of it."""
    for number in range(1, steps + 1):
        await history.record(JOB, a_step(number))
        await history.append_event(JOB, b'"%d"' % number, float(number))
        for worker in ("rollout-0", "rollout-1", "learner")[: 3 if number % 20 == 0 else 2]:
            await history.record(JOB, a_heartbeat(worker, 2.0 * number))
    return await everything(history)


async def test_a_sample_is_spread_evenly_and_holds_both_ends(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_NEWEST_EVENTS", 60)
    whole = await a_long_job(history, 300)
    found = await history.sampled(JOB, 0, whole[-1].number, 20)
    assert found == sorted(set(found))
    assert set(found) <= set(whole)
    steps = [json.loads(e.data)["step"] for e in found if e.kind == "step"]
    assert (len(steps), steps[0], steps[-1]) == (20, 1, 300)
    assert max(b - a for a, b in pairwise(steps)) <= 300 / 19 + 2
    beats = Counter(e.source for e in found if e.kind == "worker")
    assert min(beats["worker rollout-0"], beats["worker rollout-1"]) >= 20
    of_worker = [e for e in whole if e.kind == "worker"]
    assert {of_worker[0], of_worker[-1]} <= set(found)
    events = [int(json.loads(e.data)) for e in found if e.kind == "event"]
    assert events == [*range(1, 21), *range(241, 301)]


async def test_a_sample_of_what_is_short_is_all_of_it(history: History) -> None:
    whole = await a_long_job(history, 30)
    assert await history.sampled(JOB, 0, whole[-1].number, 20) == whole
    assert await history.sampled(JOB, whole[9].number, whole[40].number, 20) == whole[10:41]
    assert await history.sampled(JOB, whole[-1].number, whole[-1].number, 20) == []


async def test_what_is_read_for_a_sample_does_not_grow_with_the_job(history: History, redis: Redis) -> None:
    async def commands(steps: int) -> tuple[int, int]:
        """(commands that a sample takes, entries that it reads)"""
        await run(redis.flushall())
        last = (await a_long_job(history, steps))[-1].number
        before = (await redis.info("stats"))["total_commands_processed"]
        found = await history.sampled(JOB, 0, last, 5)
        after = (await redis.info("stats"))["total_commands_processed"]
        return after - before, sum(e.kind != "event" for e in found)

    assert await commands(100) == await commands(200)


@pytest.mark.parametrize("steps", [1, 39, 40, 41, 80, 81, 1000])
async def test_sparklines_are_the_steps_in_equal_shares(history: History, redis: Redis, steps: int) -> None:
    rewards = [None if n % 7 == 0 else (n * 37 % 100) / 100 for n in range(steps)]
    for number, reward in enumerate(rewards, 1):
        await history.record(JOB, a_step(number, reward, age=number % 5))
    found = await spark(redis)
    stride = 1
    while steps > 40 * stride:
        stride *= 2
    shares = [range(start, min(start + stride, steps)) for start in range(0, steps, stride)]
    assert len(found.age) == len(shares) <= 40
    assert found.age == [max((n + 1) % 5 for n in share) for share in shares]  # age 99 was masked: it did not enter
    given = [[r for n in share if (r := rewards[n]) is not None] for share in shares]
    assert found.count == [len(g) for g in given]
    assert found.reward == pytest.approx([statistics.fmean(g) for g in given if g])


async def test_a_job_knows_its_pace(redis: Redis) -> None:
    store = JobStore(redis)
    await store.record(JOB, a_step(1))
    assert await store.ids() == []  # measuring makes no job
    await store.create(Job(id=JOB, created_at=1.0, model="m", model_path="/m", training_file="file-1"))
    for number in range(2, 50):
        await store.record(JOB, a_step(number, time=number * 0.5))
    await store.record(JOB, a_step(7, time=99.0))  # repeated by a learner that was replaced: not the pace
    pace = (await store.get(JOB)).pace
    assert pace == tuple((n, n * 0.5) for n in range(18, 50))


def test_every_kind_of_measurement_has_a_stream() -> None:
    assert {"event", *(m.kind for m in (StepMetrics, UpdateMetrics, WorkerMetrics))} <= set(KINDS)


@pytest.mark.parametrize("size", [40, 4000])
async def test_a_long_history_keeps_within_its_bytes_and_counts_what_it_left_out(redis: Redis, size: int) -> None:
    most = 100 * size
    history = History(redis, max_bytes=most)
    for number in range(1000):
        await history.append_event(JOB, msgspec.json.encode(f"{number} ".ljust(size - 7)), float(number))
    found = await everything(history)
    numbers = [e.number for e in found]
    assert sum(len(e.source) + len(e.data) for e in found) <= most
    assert await run(redis.memory_usage(JobKeys(JOB).history("event"), samples=0)) < 2 * most + 20_000
    assert numbers[0] == 1, "the first is gone"
    assert numbers[-25:] == list(range(976, 1001)), "the newest are not all there"
    assert (await history.left_out(JOB))["event"] == 1000 - len(found)
    gaps = [b - a for a, b in pairwise(numbers)]
    assert gaps == sorted(gaps, reverse=True), "the past is not the coarser the older it is"
    assert await history.last(JOB) == 1000


async def test_a_step_that_was_left_out_leads_to_the_next_that_is_there(redis: Redis) -> None:
    history = History(redis, max_bytes=20_000)
    for number in range(1, 200):
        await history.record(JOB, a_step(number))
    kept = [msgspec.json.decode(e.data)["step"] for e in await everything(history)]
    assert len(kept) < 199
    for step in (1, 2, 50, 150, 199):
        place = await history.before_step(JOB, step)
        after = await history.after(JOB, place, 1)
        assert msgspec.json.decode(after[0].data)["step"] == min(s for s in kept if s >= step)
