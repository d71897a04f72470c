"""The job store on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from typing import get_args

import msgspec
import pytest
from redis.asyncio import Redis

from headrace_core.errors import InvalidState, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.events import IdleStep
from headrace_core.types.job import ENDED, Checkpoint, Job, JobError, PausedBy, Status, new_id
from headrace_core.types.metrics import UpdateMetrics, WorkerMetrics

ALLOWED = {
    ("validating_files", "queued"),
    ("validating_files", "failed"),
    ("validating_files", "cancelled"),
    ("queued", "running"),
    ("queued", "paused"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("running", "paused"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("paused", "queued"),
    ("paused", "failed"),
    ("paused", "cancelled"),
}


def a_job(job_id: str, created_at: float = 1.0, status: Status = "validating_files") -> Job:
    return Job(
        id=job_id,
        created_at=created_at,
        model="headrace/tiny-adder",
        model_path="/models/tiny-adder",
        training_file="file-1",
        grader={"type": "string_check"},
        hyperparameters={"n_steps": 3},
        rows=10,
        total_steps=3,
        status=status,
    )


def an_update(version: int) -> UpdateMetrics:
    return UpdateMetrics(
        worker="rollout-0", time=1.0, version=version, staged_seconds=0.1, paused_seconds=0.01, requests_in_flight=3
    )


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis)


async def test_a_job_is_kept_whole_and_changed_in_part(store: JobStore) -> None:
    await store.create(a_job("ftjob-a"))
    assert await store.get("ftjob-a") == a_job("ftjob-a")
    error = JobError("out_of_memory", "no room", "batch_size")
    await store.update("ftjob-a", trained_tokens=12)
    await store.move("ftjob-a", "failed", error)
    job = await store.get("ftjob-a")
    assert (job.status, job.fine_tuned_model, job.trained_tokens, job.error) == ("failed", None, 12, error)
    assert job.hyperparameters == {"n_steps": 3}


async def test_a_job_is_created_only_where_there_is_none(store: JobStore, redis: Redis) -> None:
    first = msgspec.structs.replace(a_job("ftjob-a"), training_file="file-mine")
    other = msgspec.structs.replace(a_job("ftjob-a", created_at=2.0, status="queued"), owner="eve", model="other")
    assert await store.create(first)
    assert not await store.create(other)
    assert await store.get("ftjob-a") == first
    assert await redis.hget(JobKeys("ftjob-a").job, "owner") == b"local"
    assert await redis.zscore(keys.JOBS, "ftjob-a") == 1.0
    await store.move("ftjob-a", "queued")
    assert await store.create(first), "sent again, since its answer was lost"
    assert (await store.get("ftjob-a")).status == "queued"


async def test_of_many_jobs_with_one_id_one_is_created(store: JobStore) -> None:
    offered = [msgspec.structs.replace(a_job("ftjob-a"), training_file=f"file-{number}") for number in range(20)]
    created = await asyncio.gather(*map(store.create, offered))
    assert sum(created) == 1
    assert await store.get("ftjob-a") == offered[created.index(True)]


async def test_a_job_that_was_cancelled_first_has_no_model_and_no_error(store: JobStore) -> None:
    await store.create(a_job("ftjob-a", status="running"))
    await store.move("ftjob-a", "cancelled")
    outcomes: dict[Status, str | JobError] = {"succeeded": "ft:adder", "failed": JobError("stalled", "it stood still")}
    for status, outcome in outcomes.items():
        with pytest.raises(InvalidState):
            await store.move("ftjob-a", status, outcome)
    job = await store.get("ftjob-a")
    assert (job.status, job.fine_tuned_model, job.error) == ("cancelled", None, None)
    await store.create(a_job("ftjob-b", status="running"))
    await store.move("ftjob-b", "succeeded", "ft:adder")
    assert (await store.get("ftjob-b")).fine_tuned_model == "ft:adder"


async def test_a_creation_that_arrives_late_once_more_leaves_the_status(store: JobStore) -> None:
    await store.create(a_job("ftjob-a", status="queued"))
    await store.move("ftjob-a", "running")
    await store.create(a_job("ftjob-a", status="queued"))
    assert (await store.get("ftjob-a")).status == "running"


async def test_why_a_job_paused_is_known_until_it_is_resumed(store: JobStore) -> None:
    await store.create(a_job("ftjob-a", status="running"))
    why = PausedBy("worker_failed", "the learner died", 5.0)
    await store.move("ftjob-a", "paused", why)
    assert (await store.get("ftjob-a")).paused_by == why
    with pytest.raises(InvalidState, match="paused"):
        await store.move("ftjob-a", "paused", PausedBy("stalled", "another", 6.0))
    assert (await store.get("ftjob-a")).paused_by == why
    await store.move("ftjob-a", "queued")
    assert (await store.get("ftjob-a")).paused_by is None
    await store.move("ftjob-a", "paused")
    assert (await store.get("ftjob-a")).paused_by is None


async def test_jobs_are_listed_newest_first(store: JobStore) -> None:
    for number in range(3):
        await store.create(a_job(f"ftjob-{number}", created_at=float(number)))
    assert [j.id for j in await store.all()] == ["ftjob-2", "ftjob-1", "ftjob-0"]


async def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    with pytest.raises(NotFound, match="ftjob-x"):
        await store.get("ftjob-x")
    with pytest.raises(NotFound, match="ftjob-x"):
        await store.move("ftjob-x", "running")


async def test_the_status_moves_along_the_arrows_only(store: JobStore) -> None:
    for start, to in itertools.product(get_args(Status), get_args(Status)):
        job_id = f"ftjob-{start}-{to}"
        await store.create(a_job(job_id, status=start))
        if (start, to) in ALLOWED:
            await store.move(job_id, to)
            job = await store.get(job_id)
            assert job.status == to
            assert (job.finished_at is not None) == (to in ENDED)
        else:
            with pytest.raises(InvalidState, match=f"is {start}; it cannot become {to}"):
                await store.move(job_id, to)
            assert (await store.get(job_id)).status == start


async def test_of_a_cancel_and_a_finish_exactly_one_wins(store: JobStore) -> None:
    for number in range(20):
        job_id = f"ftjob-{number}"
        await store.create(a_job(job_id, status="running"))
        ends: tuple[Status, ...] = ("cancelled", "succeeded", "failed")
        results = await asyncio.gather(*(store.move(job_id, end) for end in ends), return_exceptions=True)
        assert sum(r is None for r in results) == 1
        assert all(r is None or isinstance(r, InvalidState) for r in results)
        assert (await store.get(job_id)).status == ends[results.index(None)]


async def test_a_job_is_at_rest_in_the_status_that_its_controller_ended_with(store: JobStore) -> None:
    await store.create(a_job("ftjob-a", status="running"))
    await store.move("ftjob-a", "paused")
    assert not await store.mark_at_rest("ftjob-a", "cancelled")
    assert not (await store.get("ftjob-a")).at_rest
    assert await store.mark_at_rest("ftjob-a", "paused")
    assert (await store.get("ftjob-a")).at_rest
    await store.move("ftjob-a", "queued")  # while the controller that paused it may still be ending
    assert not (await store.get("ftjob-a")).at_rest
    assert not await store.mark_at_rest("ftjob-a", "paused")
    await store.move("ftjob-a", "paused")
    assert not (await store.get("ftjob-a")).at_rest


async def test_events_and_metrics_are_kept_in_order(store: JobStore) -> None:
    told = [
        await store.emit_event("ftjob-a", f"message {i}", level="warn", data=IdleStep(i, "equal")) for i in range(3)
    ]
    assert [e for _, e in await store.events("ftjob-a")] == told
    for version in range(3):
        await store.record("ftjob-a", an_update(version))
    every = await store.metrics("ftjob-a")
    assert [(kind, data["version"]) for _, kind, data in every] == [("update", 0), ("update", 1), ("update", 2)]
    assert [number for number, _, _ in every] == [4, 5, 6]


async def test_checkpoints_and_heartbeats(store: JobStore) -> None:
    saved = [
        Checkpoint(f"ftckpt-{step}", 1.0, step, f"m-{step}", f"/out/{step}", {"reward": 0.5}) for step in (2, 10, 4)
    ]
    for checkpoint in saved:
        await store.add_checkpoint("ftjob-a", checkpoint)
    assert [c.step for c in await store.checkpoints("ftjob-a")] == [10, 4, 2]
    beats = [
        WorkerMetrics(worker=w, role="rollout", time=t, version=0, uptime=1, busy=0.5, waiting={})
        for w, t in (("rollout-1", 1.0), ("learner", 2.0), ("rollout-1", 3.0))
    ]
    for beat in beats:
        await store.record_heartbeat("ftjob-a", beat)
    assert await store.workers("ftjob-a") == [beats[1], beats[2]]
    assert len(await store.metrics("ftjob-a")) == 3


def test_ids_are_their_own() -> None:
    ids = {new_id("ftjob-") for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == len("ftjob-") + 24 for i in ids)
