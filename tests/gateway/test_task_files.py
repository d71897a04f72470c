"""A job may name a task where it would name a file: the rows are made, and kept as a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest, TimedOut, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.storage.dataset import read_rows
from headrace_core.types.job import Job
from headrace_gateway.cli import job_file
from headrace_gateway.files import task_files
from headrace_gateway.files.file_store import FileStore
from headrace_gateway.files.task_files import TaskFiles
from headrace_gateway.limited_processes.process_slots import ProcessSlots
from headrace_gateway.operations import idempotency

from .conftest import Served, body

SUMS = "reasoning_gym:chain_sum?size=4&seed=42&min_terms=2&max_terms=2&answer=whole"


async def test_rows_of_a_task_become_a_file(client: AsyncOpenAI, served: Served) -> None:
    job = await client.fine_tuning.jobs.create(**body(SUMS))
    stored = await client.files.retrieve(job.training_file)
    assert (stored.filename, stored.purpose) == (f"{SUMS}.jsonl", "fine-tune")
    rows = read_rows(served.data_dir / "files" / job.training_file)
    assert len(rows) == (await served.jobs.get(job.id)).rows == 4
    assert {row.item["task"] for row in rows} == {"chain_sum"}
    assert list(served.data_dir.glob(".task-*")) == []


async def test_a_task_that_is_unknown(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    asked = body(training_file, validation_file="reasoning_gym:chain_sums")
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.fine_tuning.jobs.create(**asked)
    assert refusal.value.param == "validation_file"
    assert "close to it: chain_sum" in refusal.value.message
    assert await served.jobs.ids() == []


async def test_a_request_that_is_refused_leaves_no_file(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.fine_tuning.jobs.create(**body(SUMS, grader={"type": "oracle", "name": "o"}))
    assert [file.id async for file in client.files.list()] == []


async def test_where_storing_the_job_fails_its_rows_stay(
    client: AsyncOpenAI, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been stored all the same, and runs then."""
    create = JobStore.create

    async def stored_without_an_answer(jobs: JobStore, job: Job) -> bool:
        await create(jobs, job)
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(JobStore, "create", stored_without_an_answer)
    with pytest.raises(openai.InternalServerError, match="Redis does not answer"):
        await client.fine_tuning.jobs.create(**body(SUMS))
    (job,) = await served.jobs.all()
    assert len(read_rows(served.data_dir / "files" / job.training_file)) == job.rows
    made_long_ago(monkeypatch)
    assert await task_files.sweep(FileStore(served.redis, served.data_dir / "files", 10**6), served.jobs) == []
    assert len(read_rows(served.data_dir / "files" / job.training_file)) == job.rows


def made_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "ABANDONED_AFTER_SECONDS", 0.0)


@pytest.fixture
def unstored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis goes away before it has heard of the job; nobody knows that it has not."""

    async def unheard(jobs: JobStore, job: Job) -> bool:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(JobStore, "create", unheard)


async def test_the_rows_for_a_job_that_was_never_stored_go_once_they_are_old(
    client: AsyncOpenAI, served: Served, training_file: str, unstored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileStore(served.redis, served.data_dir / "files", 10**6)
    with pytest.raises(openai.InternalServerError, match="Redis does not answer"):
        await client.fine_tuning.jobs.create(**body(SUMS, validation_file=SUMS))
    made = [file.id for file in await files.all() if file.id != training_file]
    assert len(made) == 2
    assert await task_files.sweep(files, served.jobs) == [], "they may be under way"
    made_long_ago(monkeypatch)
    await served.redis.zadd(keys.JOBS, {"ftjob-damaged": 1.0})
    await served.redis.hset(keys.JobKeys("ftjob-damaged").job, "document", "{")
    assert await task_files.sweep(files, served.jobs) == [], "a job that cannot be read may name them"
    await served.redis.zrem(keys.JOBS, "ftjob-damaged")
    assert sorted(await task_files.sweep(files, served.jobs)) == sorted(made)
    assert [file.id for file in await files.all()] == [training_file]
    assert os.listdir(files.folder) == [training_file]


async def test_a_submission_that_another_overtook_answers_the_others_job_and_leaves_no_rows(
    client: AsyncOpenAI, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateway stood still when all was checked, for longer than its lease."""
    create, slow = JobStore.create, list[Job]()

    async def submit() -> Any:
        named = {"Idempotency-Key": "k"}
        return await client.fine_tuning.jobs.create(**body(SUMS, validation_file=SUMS), extra_headers=named)

    async def overtaken(jobs: JobStore, job: Job) -> bool:
        if not slow:
            slow.append(job)
            await served.redis.delete(keys.request_lease(job.id))
            assert (await submit()).id == job.id
        return await create(jobs, job)

    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 600.0)  # it does not notice that it was overtaken
    monkeypatch.setattr(JobStore, "create", overtaken)
    answered = await submit()
    (job,) = await served.jobs.all()
    assert job.training_file != slow[0].training_file
    assert (answered.id, answered.training_file) == (job.id, job.training_file)
    events = [event.message for _, event in await served.jobs.events(job.id)]
    assert len([message for message in events if message.startswith("Created")]) == 1
    listed = {file.id async for file in client.files.list()}
    assert listed == {job.training_file, job.validation_file} == set(os.listdir(served.data_dir / "files"))


async def test_so_many_are_made_at_once(redis: Redis, tmp_path: Path) -> None:
    """A submission without a limit of its own would be a process, and a file, for each of any number of requests."""
    slots = ProcessSlots(1, 0.2, "the rows of 1 other task are being made")
    tasks = TaskFiles(FileStore(redis, tmp_path / "files", 10**6), tmp_path, RewardPermissions(), slots, "ftjob-1")
    async with slots.slot():
        with pytest.raises(TimedOut, match=r"1 other task.*: ask again"):
            await tasks.file_id(SUMS, "training_file")
    assert not any(entry.startswith(".task-") for entry in os.listdir(tmp_path))


async def test_all_submissions_of_a_gateway_share_the_places(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = 0, 0

    async def counted(command: str, *_: Any, **__: Any) -> Any:
        nonlocal held, most
        assert command == "tasks"
        held += 1
        most = max(most, held)
        await asyncio.sleep(0.1)
        held -= 1
        raise InvalidRequest("no such task")

    monkeypatch.setattr(task_files, "ask_rewards", counted)
    asked = [client.fine_tuning.jobs.create(**body(f"{SUMS}&n={n}")) for n in range(3 * task_files.AT_ONCE)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(end) for end in ends] == [openai.BadRequestError] * len(ends)
    assert most == task_files.AT_ONCE


def test_a_job_file_may_name_a_task(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    grader = 'type = "reasoning_gym"\nname = "verifier"'
    path.write_text(f'model = "m"\ntraining_file = "{SUMS}"\n[grader]\n{grader}\n')
    told = job_file.read(path)
    assert told.body["training_file"] == SUMS
    assert told.uploads == {}
