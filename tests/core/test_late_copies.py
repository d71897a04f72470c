"""A copy of a call that was stuck on its way, and arrives when others have come between, changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from headrace_core.errors import InvalidState, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job
from headrace_core.types.metrics import EvaluationMetrics

JOB = "ftjob-copies"
Sent = list[tuple[Any, ...]]


@pytest.fixture
async def sent(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Every script call that was sent, of a job that runs."""
    jobs = JobStore(redis)
    await jobs.create(Job(id=JOB, created_at=0.0, model="m", model_path="", training_file="", status="running"))
    calls, evalsha = Sent(), redis.evalsha

    def watched(*call: Any) -> Awaitable[Any]:
        calls.append(call)
        return evalsha(*call)

    monkeypatch.setattr(redis, "evalsha", watched)
    return calls


async def told(redis: Redis, call: tuple[Any, ...]) -> Any:
    return await redis.evalsha(*call)


async def test_of_a_drain_and_of_its_end(redis: Redis, sent: Sent) -> None:
    drains = WorkerDrains(redis, JOB)
    await drains.request("rollout-0", 60)
    assert await drains.release("rollout-0")
    ask, release = sent[-2:]
    assert await told(redis, ask) == b"free", "answered as it was when it came first"
    assert await drains.of("rollout-0") is None
    await drains.request("rollout-0", 60)
    assert await told(redis, release) == b"drained"
    assert await drains.covers_all(1)


async def test_of_a_pause_and_of_a_resume(redis: Redis, sent: Sent) -> None:
    jobs = JobStore(redis)
    for status in ("paused", "queued"):
        await jobs.move(JOB, status)
    pause, resume = sent[-2:]
    assert await told(redis, pause) == b"ok", "answered as it was when it came first"
    assert (await jobs.get(JOB)).status == "queued"
    await jobs.move(JOB, "paused")
    assert await told(redis, resume) == b"ok"
    assert (await jobs.get(JOB)).status == "paused"


async def test_of_one_that_was_refused(redis: Redis, sent: Sent) -> None:
    jobs = JobStore(redis)
    with pytest.raises(InvalidState, match="is running; it cannot become queued"):
        await jobs.move(JOB, "queued")
    refused = sent[-1]
    await jobs.move(JOB, "paused")
    assert await told(redis, refused) == b"running"
    assert (await jobs.get(JOB)).status == "paused"


async def test_of_a_rest(redis: Redis, sent: Sent) -> None:
    jobs = JobStore(redis)
    await jobs.move(JOB, "paused")
    assert await jobs.mark_at_rest(JOB, "paused")
    rest = sent[-1]
    await jobs.move(JOB, "queued")
    await jobs.move(JOB, "paused")
    assert await told(redis, rest) == b"ok"
    assert not (await jobs.get(JOB)).at_rest, "it came to rest in the pause before"


async def test_what_is_kept_of_calls_stays_small(redis: Redis, sent: Sent) -> None:
    drains = WorkerDrains(redis, JOB)
    for _ in range(100):
        await drains.request("rollout-0", 60)
        await drains.release("rollout-0")
    assert await redis.hstrlen(JobKeys(JOB).job, "drained_by") == 1024


@pytest.mark.parametrize("call", [lambda d: d.request("rollout-0", 60), lambda d: d.release("rollout-0")])
async def test_that_outlived_its_job_leaves_nothing_behind(
    redis: Redis, call: Callable[[WorkerDrains], Awaitable[Any]]
) -> None:
    with pytest.raises(NotFound, match="no job 'ftjob-none'"):
        await call(WorkerDrains(redis, "ftjob-none"))
    assert await redis.keys("*ftjob-none*") == []


def evaluation(step: int, reward: float, time: float) -> EvaluationMetrics:
    return EvaluationMetrics(
        step=step,
        time=time,
        seconds=1.0,
        samples=2,
        reward_mean=reward,
        components={},
        reward_failed=0,
        completion_length=3.0,
    )


async def test_of_an_event_and_of_a_measurement(redis: Redis, sent: Sent) -> None:
    jobs = JobStore(redis)
    for step in (1, 2):
        await jobs.record(JOB, evaluation(step, 0.5, float(step)))
    first, second = sent[-2:]
    await jobs.emit_event(JOB, "first")
    told_first = sent[-1]
    await jobs.emit_event(JOB, "second")
    assert await told(redis, first) == 1, "answered as it was when it came first"
    assert await told(redis, second) == 2
    assert await told(redis, told_first) == 3
    assert [data["step"] for _, _, data in await jobs.metrics(JOB)] == [1, 2]
    assert [event.message for _, event in await jobs.events(JOB)] == ["first", "second"]


async def test_an_evaluation_that_two_controllers_made_is_on_record_once(redis: Redis, sent: Sent) -> None:
    """The first died when its record was on the way; its successor could not see it yet."""
    jobs = JobStore(redis)
    for step, reward in ((1, 0.5), (2, 0.5), (1, 0.25), (2, 0.25), (3, 0.25)):
        await jobs.record(JOB, evaluation(step, reward, 10 * step + reward))
    found = [(data["step"], data["reward_mean"]) for _, _, data in await jobs.metrics(JOB)]
    assert found == [(1, 0.5), (2, 0.5), (3, 0.25)]
