"""A job's status while its controller and its user move it, on a real job store."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from headrace_controller.status_changes import Cancelled, Paused, StatusChanges, check_wanted
from headrace_core.errors import InvalidState
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import JobError, Status
from headrace_lab.services.jobs import stored_job

JOB = "ftjob-1"


async def job_in(redis: Redis, *statuses: Status) -> tuple[JobStore, StatusChanges]:
    jobs = JobStore(redis)
    await jobs.create(stored_job(JOB))
    for status in statuses:
        await jobs.move(JOB, status)
    return jobs, StatusChanges(jobs, JOB, poll_seconds=0.01)


@pytest.mark.parametrize(("wish", "raised"), [("cancelled", Cancelled), ("paused", Paused)])
async def test_the_users_wish_comes_first(redis: Redis, wish: Status, raised: type[Exception]) -> None:
    jobs, status = await job_in(redis, "queued", "running", wish)
    with pytest.raises(raised):
        await status.move("succeeded", "ft:m")
    with pytest.raises(raised):
        check_wanted(await jobs.get(JOB))
    assert await jobs.status(JOB) == wish


async def test_a_job_that_was_paused_and_resumed_between_two_polls_never_stopped(redis: Redis) -> None:
    jobs, status = await job_in(redis, "queued", "running", "paused", "queued")
    await status.move("failed", JobError("internal_error", "no luck"))
    assert (await jobs.get(JOB)).error == JobError("internal_error", "no luck")


async def test_a_move_that_was_made_already_is_none_and_another_one_is_refused(redis: Redis) -> None:
    _, status = await job_in(redis, "queued", "running")
    await status.move("succeeded", "ft:m")
    await status.move("succeeded", "ft:m")
    with pytest.raises(InvalidState):
        await status.move("failed", JobError("internal_error", "too late"))


async def test_a_cancel_ends_the_wait_for_it(redis: Redis) -> None:
    jobs, status = await job_in(redis, "queued", "running", "paused")
    waiting = asyncio.create_task(status.until_cancelled())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await jobs.move(JOB, "cancelled")
    with pytest.raises(Cancelled):
        await asyncio.wait_for(waiting, 10)
