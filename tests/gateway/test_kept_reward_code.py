"""The code of a job that was not stored does not stay; that of one that may have been stays until Redis says."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from redis.exceptions import ConnectionError as RedisGone
from redis.exceptions import OutOfMemoryError

from headrace_core.errors import InvalidRequest
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.reward_code_folder import sweep
from headrace_core.redis_access import keys
from headrace_core.storage.atomic_write import ABANDONED_AFTER_SECONDS
from headrace_core.types.job import Job
from headrace_gateway.context import GatewayContext
from headrace_gateway.operations import submission

from .conftest import Served, body

Create = Callable[[JobStore, Job], Awaitable[bool]]


@pytest.fixture
def grader(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "reward.py").write_text("def score(completion, answer): return float(completion == answer)")
    return {"type": "function", "name": "r", "function": f"{tmp_path}/reward.py:score"}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, bool], None]:
    """From now on storing a job raises this error; after it was stored, or instead."""
    create: Create = JobStore.create

    def fail(error: Exception, stored: bool) -> None:
        async def created(store: JobStore, job: Job) -> bool:
            if stored:
                await create(store, job)
            raise error

        monkeypatch.setattr(JobStore, "create", created)

    return fail


def left(served: Served) -> list[Path]:
    """The folders of jobs."""
    return sorted(path for path in (served.data_dir / "jobs").glob("*") if path.name.startswith("ftjob"))


async def refused(client: AsyncOpenAI, training_file: str, grader: dict[str, str]) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.with_options(max_retries=0).fine_tuning.jobs.create(**body(training_file, grader=grader))
    assert caught.value.status_code >= 500


async def test_of_a_job_that_is_stored_only_its_code_is_there(
    served: Served, client: AsyncOpenAI, training_file: str, grader: dict[str, str]
) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file, grader=grader))
    (folder,) = left(served)
    assert (folder.name, [path.name for path in folder.iterdir()]) == (job.id, ["reward_code"])


async def test_of_a_job_that_needs_no_code_there_is_no_folder(
    served: Served, client: AsyncOpenAI, training_file: str
) -> None:
    await client.fine_tuning.jobs.create(**body(training_file))
    assert left(served) == []


async def test_what_redis_refused_leaves_no_code(
    served: Served,
    client: AsyncOpenAI,
    training_file: str,
    grader: dict[str, str],
    failing: Callable[[Exception, bool], None],
) -> None:
    failing(OutOfMemoryError("OOM command not allowed"), False)
    await refused(client, training_file, grader)
    assert left(served) == []


@pytest.mark.parametrize("stored", [True, False])
async def test_what_redis_did_not_answer_is_settled_later(
    served: Served,
    client: AsyncOpenAI,
    training_file: str,
    grader: dict[str, str],
    failing: Callable[[Exception, bool], None],
    stored: bool,
) -> None:
    """As what a gateway leaves that is killed while it submits."""
    failing(RedisGone("away"), stored)
    await refused(client, training_file, grader)
    (folder,) = left(served)
    assert {path.name for path in folder.iterdir()} == {".submitting", "reward_code"}
    assert await sweep(served.data_dir, served.jobs) == []
    assert left(served) == [folder], "it may be under way"
    old = time.time() - ABANDONED_AFTER_SECONDS - 60
    os.utime(folder / ".submitting", (old, old))
    assert await sweep(served.data_dir, served.jobs) == ([] if stored else [folder])
    assert [path.name for path in folder.glob("*")] == (["reward_code"] if stored else [])
    assert left(served) == ([folder] if stored else [])


async def test_a_slow_submission_leaves_the_code_of_the_job_that_another_made_meanwhile(
    served: Served, client: AsyncOpenAI, training_file: str, grader: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ended while its gateway stood still; then it is refused."""
    rehearsed, slow = submission._rehearsed, list[str]()

    async def create() -> Any:
        jobs = client.with_options(max_retries=0).fine_tuning.jobs
        return await jobs.create(**body(training_file, grader=grader), extra_headers={"Idempotency-Key": "k"})

    async def overtaken(gateway: GatewayContext, job: Job, *rest: Any) -> Any:
        found = await rehearsed(gateway, job, *rest)
        if not slow:
            slow.append(job.id)
            await gateway.redis.delete(keys.request_lease(job.id))
            assert (await create()).id == job.id
            raise InvalidRequest("the model was removed meanwhile")
        return found

    monkeypatch.setattr(submission, "_rehearsed", overtaken)
    with pytest.raises(openai.BadRequestError, match="removed meanwhile"):
        await create()
    (folder,) = left(served)
    assert (folder.name, [path.name for path in folder.iterdir()]) == (slow[0], ["reward_code"])
    assert list((folder / "reward_code").iterdir())
    assert (await create()).id == slow[0], "its name stands for that job"
