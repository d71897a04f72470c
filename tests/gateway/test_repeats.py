"""A repeated POST: who may create the job, and what the others wait for."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest
from fastapi import Request
from redis.asyncio import Redis
from starlette.types import Message

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged, InvalidRequest, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import connect, ping
from headrace_core.types.job import Job
from headrace_gateway.chat.chat_pool import RayChatPool
from headrace_gateway.context import GatewayContext
from headrace_gateway.operations import idempotency
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.held_answers import held_answers
from headrace_lab.services.jobs import stored_job

from .conftest import Controllers

RETRY = {"x-stainless-retry-count": "1"}


async def test_a_retry_waits_for_the_first_request(redis: Redis) -> None:
    jobs = JobStore(redis)
    first = await idempotency.reserve(redis, "me", {}, b"body")
    retry = await idempotency.reserve(redis, "me", RETRY, b"body")
    assert (first.repeated, retry.repeated, retry.job_id) == (False, True, first.job_id)
    waiting = asyncio.create_task(idempotency.result(redis, jobs, retry))
    await asyncio.sleep(0)
    assert not waiting.done()
    await jobs.create(stored_job(first.job_id))
    job = await asyncio.wait_for(waiting, timeout=5)
    assert job is not None
    assert job.id == first.job_id


async def test_a_retry_of_a_request_that_failed_is_carried_out(redis: Redis) -> None:
    first = await idempotency.reserve(redis, "me", {}, b"body")
    retry = await idempotency.reserve(redis, "me", RETRY, b"body")
    await idempotency.give_up(redis, first)
    assert await idempotency.result(redis, JobStore(redis), retry) is None
    again = await idempotency.reserve(redis, "me", RETRY, b"body")
    assert (again.repeated, again.job_id) == (True, first.job_id)  # of the one that carries it out now


async def test_a_request_whose_gateway_died_is_carried_out_under_the_same_id(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 0.4)
    named = {"idempotency-key": "k"}
    died = await idempotency.reserve(redis, "me", named, b"body")
    repeat = await idempotency.reserve(redis, "me", named, b"body")
    began = time.monotonic()
    assert await asyncio.wait_for(idempotency.result(redis, JobStore(redis), repeat), timeout=5) is None
    assert time.monotonic() - began > 0.2
    assert (repeat.repeated, repeat.job_id) == (True, died.job_id)
    other = await idempotency.reserve(redis, "me", named, b"body")
    waiting = asyncio.create_task(idempotency.result(redis, JobStore(redis), other))
    await JobStore(redis).create(stored_job(repeat.job_id))
    job = await asyncio.wait_for(waiting, timeout=5)
    assert job is not None
    assert job.id == died.job_id


async def test_a_request_that_takes_longer_than_a_lease_keeps_it(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 0.3)
    jobs = JobStore(redis)
    first = await idempotency.reserve(redis, "me", {}, b"body")
    repeat = await idempotency.reserve(redis, "me", RETRY, b"body")
    waiting = asyncio.create_task(idempotency.result(redis, jobs, repeat))

    async def slow() -> Job:
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await jobs.create(stored_job(first.job_id))
        return stored_job(first.job_id)

    assert await idempotency._carried_out(redis, first, slow()) is not None
    job = await asyncio.wait_for(waiting, timeout=5)
    assert job is not None
    assert job.id == first.job_id


def named_request() -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"body", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "server": ("a", 80), "scheme": "http"}
    return Request({**scope, "headers": [(b"idempotency-key", b"k")], "state": {}}, receive)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("a fault"), Unavailable("Redis is away")])
async def test_a_request_that_ends_after_its_job_is_stored_names_it_still(
    redis: Redis, tmp_path: Path, error: BaseException
) -> None:
    """As where its gateway is told to end: the repeat finds the job, and makes no second one."""
    settings = Settings(data_dir=tmp_path, fork_server=False)
    here = GatewayContext.over(settings, redis, Controllers(), RayChatPool(settings, redis))

    async def stores(claim: idempotency.JobClaim) -> Job:
        await here.jobs.create(stored_job(claim.job_id))
        raise error

    async def another(claim: idempotency.JobClaim) -> Job:
        raise AssertionError("it was carried out again")

    with pytest.raises(type(error)):
        await idempotency.create_once(here, named_request(), stores)
    job = await idempotency.create_once(here, named_request(), another)
    assert await here.jobs.ids() == [job.id]


async def test_the_name_of_a_request_that_was_refused_is_free_for_a_better_one(redis: Redis, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, fork_server=False)
    here = GatewayContext.over(settings, redis, Controllers(), RayChatPool(settings, redis))

    async def refuses(claim: idempotency.JobClaim) -> Job:
        raise InvalidRequest("no such model")

    with pytest.raises(InvalidRequest):
        await idempotency.create_once(here, named_request(), refuses)
    assert not (
        await idempotency.reserve(redis, here.principal.name, {"idempotency-key": "k"}, b"a better one")
    ).repeated


@pytest.fixture
def here(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GatewayContext:
    """A gateway whose leases end fast."""
    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 0.6)
    settings = Settings(data_dir=tmp_path, fork_server=False)
    return GatewayContext.over(settings, redis, Controllers(), RayChatPool(settings, redis))


async def taken_over(here: GatewayContext) -> idempotency.ReservedRequest:
    """By a repeat, from a request that holds the lease: as after its gateway stood still for longer than a lease."""
    repeat = await idempotency.reserve(here.redis, here.principal.name, {"idempotency-key": "k"}, b"/\nbody")
    assert repeat.repeated
    await here.redis.delete(keys.request_lease(repeat.job_id))
    assert await idempotency.result(here.redis, here.jobs, repeat) is None
    return repeat


async def test_a_slow_request_that_another_took_over_stops_and_answers_the_others_job(here: GatewayContext) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def stands_still(claim: idempotency.JobClaim) -> Job:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        raise AssertionError("it was not stopped")

    slow = asyncio.create_task(idempotency.create_once(here, named_request(), stands_still))
    await begun.wait()
    repeat = await taken_over(here)
    await asyncio.wait_for(stopped.wait(), timeout=5)
    assert not slow.done()
    await here.jobs.create(stored_job(repeat.job_id))
    assert (await asyncio.wait_for(slow, timeout=5)).id == repeat.job_id


@pytest.mark.parametrize("error", [InvalidRequest("the disk it asked for is away"), ValueError("a fault")])
async def test_a_slow_request_that_fails_after_another_took_it_over_leaves_the_others_lease_and_name(
    here: GatewayContext, error: Exception
) -> None:
    repeat: idempotency.ReservedRequest | None = None

    async def fails(claim: idempotency.JobClaim) -> Job:
        nonlocal repeat
        repeat = await taken_over(here)
        raise error

    with pytest.raises(type(error)):
        await idempotency.create_once(here, named_request(), fails)
    assert repeat is not None
    assert await here.redis.exists(keys.request_lease(repeat.job_id))
    later = await idempotency.reserve(here.redis, here.principal.name, {"idempotency-key": "k"}, b"/\nbody")
    assert (later.repeated, later.job_id) == (True, repeat.job_id)


async def test_a_slow_request_that_is_refused_after_the_other_has_made_the_job_leaves_its_name(
    here: GatewayContext,
) -> None:
    async def fails(claim: idempotency.JobClaim) -> Job:
        await here.jobs.create(stored_job(claim.job_id))
        await here.redis.delete(keys.request_lease(claim.job_id))  # the other's has ended, too
        raise InvalidRequest("the model was removed meanwhile")

    with pytest.raises(InvalidRequest):
        await idempotency.create_once(here, named_request(), fails)
    later = await idempotency.reserve(here.redis, here.principal.name, {"idempotency-key": "k"}, b"/\nbody")
    assert later.repeated
    assert await here.jobs.ids() == [later.job_id]


async def test_a_request_that_fails_leaves_the_name_to_a_newer_request_with_the_same_body(redis: Redis) -> None:
    older = await idempotency.reserve(redis, "me", {}, b"body")
    newer = await idempotency.reserve(redis, "me", {}, b"body")
    await idempotency.give_up(redis, older)
    assert (await idempotency.reserve(redis, "me", RETRY, b"body")).job_id == newer.job_id


@pytest.mark.parametrize(("then", "error"), [(b"another body", InvalidRequest), (b"body", Unavailable)])
async def test_a_repeat_leaves_the_key_to_the_request_that_it_names_by_now(
    redis: Redis, then: bytes, error: type[Exception]
) -> None:
    """The first was refused, and its key used anew before its repeat looked again."""
    named = {"idempotency-key": "k"}
    first = await idempotency.reserve(redis, "me", named, b"body")
    repeat = await idempotency.reserve(redis, "me", named, b"body")
    await idempotency.give_up(redis, first)
    anew = await idempotency.reserve(redis, "me", named, then)
    assert not anew.repeated
    with pytest.raises(error):
        await idempotency.result(redis, JobStore(redis), repeat)
    assert await redis.get(anew.key) == anew.record.encode()
    assert await redis.exists(keys.request_lease(anew.job_id))
    assert not await redis.exists(keys.request_lease(first.job_id))


async def test_a_retry_without_a_key_is_carried_out_beside_a_newer_request_with_its_body(redis: Redis) -> None:
    """They are two requests; whoever repeats the newer one is answered the newer one's job."""
    first = await idempotency.reserve(redis, "me", {}, b"body")
    retry = await idempotency.reserve(redis, "me", RETRY, b"body")
    await idempotency.give_up(redis, first)
    newer = await idempotency.reserve(redis, "me", {}, b"body")
    assert await idempotency.result(redis, JobStore(redis), retry) is None
    assert retry.job_id != newer.job_id
    assert (await idempotency.reserve(redis, "me", RETRY, b"body")).job_id == newer.job_id


async def test_a_damaged_reservation_is_named(redis: Redis) -> None:
    first = await idempotency.reserve(redis, "me", {"idempotency-key": "k"}, b"body")
    for raw in (b"", b"\xff", b"a b c"):
        await redis.set(first.key, raw)
        with pytest.raises(Damaged, match="headrace:requests"):
            await idempotency.reserve(redis, "me", {"idempotency-key": "k"}, b"body")


async def test_of_many_requests_with_one_key_one_creates(redis: Redis) -> None:
    made = await asyncio.gather(
        *(idempotency.reserve(redis, "me", {"idempotency-key": "k"}, b"body") for _ in range(20))
    )
    assert sum(not r.repeated for r in made) == 1
    assert len({r.job_id for r in made}) == 1


async def test_an_empty_key_names_no_request(redis: Redis) -> None:
    for body in (b"one", b"one", b"two"):
        assert not (await idempotency.reserve(redis, "me", {"idempotency-key": ""}, body)).repeated


async def test_another_body_is_another_request(redis: Redis) -> None:
    first = await idempotency.reserve(redis, "me", {}, b"one")
    other = await idempotency.reserve(redis, "me", RETRY, b"two")
    assert not other.repeated
    assert other.job_id != first.job_id


async def test_what_two_callers_send_are_two_requests(redis: Redis) -> None:
    for headers in ({"idempotency-key": "k"}, RETRY):
        mine = await idempotency.reserve(redis, "me", headers, b"body")
        theirs = await idempotency.reserve(redis, "them", headers, b"body")
        assert not mine.repeated
        assert not theirs.repeated
        assert mine.job_id != theirs.job_id


@pytest.mark.parametrize("of", ["lease", "name"])
async def test_a_request_that_is_cancelled_while_it_reserves_leaves_nothing_for_its_repeat_to_wait_for(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, of: str
) -> None:
    marker = {"lease": b":lease", "name": hashlib.sha256(b"body").hexdigest().encode()}[of]
    await redis.set("x", "y")
    async with held_answers(redis_server.url, tmp_path) as held, connect(held.url) as client:
        await ping(client)
        held.hold(marker)
        first = asyncio.create_task(idempotency.reserve(client, "me", {"idempotency-key": "k"}, b"body"))
        await held.answered()
        first.cancel()
        await asyncio.sleep(0)
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert await redis.keys("*") == [b"x"]
    assert not (await idempotency.reserve(redis, "me", {"idempotency-key": "k"}, b"body")).repeated


async def test_a_repeat_that_is_cancelled_while_it_takes_the_lease_over_gives_it_back(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    named = {"idempotency-key": "k"}
    first = await idempotency.reserve(redis, "me", named, b"body")
    await idempotency.give_up(redis, first, keep=True)  # it failed in between
    repeat = await idempotency.reserve(redis, "me", named, b"body")
    lease = keys.request_lease(first.job_id)
    async with held_answers(redis_server.url, tmp_path) as held, connect(held.url) as client:
        await ping(client)
        held.hold(lease.encode())
        taking = asyncio.create_task(idempotency.result(client, JobStore(client), repeat))
        await held.answered()
        assert await redis.exists(lease)
        taking.cancel()
        await asyncio.sleep(0)
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert not await redis.exists(lease)
