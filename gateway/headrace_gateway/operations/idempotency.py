"""Makes the creation of jobs idempotent: a repeated POST creates one job, not two.

OpenAI's client repeats a POST that was not answered in time, without an Idempotency-Key, but with a retry count. So an
`Idempotency-Key` identifies a request for a day; without one, a request with `x-stainless-retry-count` > 0 is a repeat
of an identical body that came within the last minutes. Requests of two callers are always different.

    first POST  ── reserves job id, leases it ──► checks, creates ──► answers the job     (if it fails: releases both)
                     └── renews the lease ─ … ─┘
    a repeat    ── finds the reservation ──► waits until the job exists ──► answers the same job
                                          └► the lease expired: takes it, processes the request under the same id

Invariants: everything created for a request has one job id, so that a gateway that dies blocks its requests for
`LEASE_SECONDS` only. A lease holds the token of the request that has it: a request that was merely slow, and whose
lease a repeat took over, stops and waits for the repeat's job. It releases neither the reservation nor the other's
lease.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.concurrency import acquire_or_undo, first_to_end
from headrace_core.errors import Damaged, HeadraceError, InvalidRequest, NotFound, TimedOut, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import RETRY_AFTER_SECONDS, run
from headrace_core.redis_access.json_records import damaged
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job, new_id

from ..context import GatewayContext
from ..principal import note_created_id, unchanged

LEASE_SECONDS = 15.0
_DAY = 86_400
_RETRIES_WITHIN = 300
_WAIT_SECONDS = 150.0
_POLL_SECONDS = 0.1

_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""KEYS: lease. ARGV: token, milliseconds. Take the lease, or extend it; 1 unless another request holds it."""
_GIVE_UP = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return end
redis.call('DEL', KEYS[1])
if KEYS[2] and redis.call('GET', KEYS[2]) == ARGV[2] and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[2])
end
"""
"""KEYS: lease; to free the name, too, the request's name and the job. ARGV: token, record. Changes nothing where
another request holds the lease; frees the name where it still stands for this record, and has no job."""


_NAME_AGAIN = """
local stands = redis.call('GET', KEYS[1])
if stands and stands ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
"""KEYS: the request's name. ARGV: record, seconds. Let it stand for this record; 1 unless it stands for another."""


@dataclass(frozen=True, slots=True)
class ReservedRequest:
    """A reservation of the job id `job_id` for a request; with `repeated`, an earlier request made the reservation."""

    key: str
    record: str
    seconds: int
    """Lifetime of the reservation."""
    repeated: bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique to this request: the value of the lease while this request holds it."""

    @property
    def by_key(self) -> bool:
        """Whether an Idempotency-Key identifies the request, rather than its body."""
        return self.seconds == _DAY

    @property
    def job_id(self) -> str:
        """The id of the job that the request creates, whichever repeat processes it."""
        return self.record.split()[0]


@dataclass(frozen=True, slots=True)
class JobClaim:
    """Passed to the function that creates the job."""

    job_id: str
    """The id of the job to create."""
    is_alone: Callable[[], Awaitable[bool]]
    """Whether everything created under that id may be deleted again: no repeat has taken the request over, or can
    within the next `LEASE_SECONDS`, and the job does not exist. False if Redis is unavailable."""


async def create_once(
    gateway: GatewayContext, request: Request, make: Callable[[JobClaim], Coroutine[Any, Any, Job]]
) -> Job:
    """The job that `make` creates; for a repeated request, the job that the first request created."""
    content = request.url.path.encode() + b"\n" + await request.body()
    reservation = await reserve(gateway.redis, gateway.principal.name, request.headers, content)
    while True:
        if reservation.repeated and (job := await result(gateway.redis, gateway.jobs, reservation)) is not None:
            unchanged(request)
            return job
        if (
            job := await _carried_out(gateway.redis, reservation, make(_claim(gateway.redis, reservation)))
        ) is not None:
            note_created_id(request, job.id)
            return job
        reservation = replace(reservation, repeated=True)


async def _carried_out(redis: Redis, reservation: ReservedRequest, making: Coroutine[Any, Any, Job]) -> Job | None:
    """Run `making` while holding the lease. Returns the job; None if a repeat took the lease over, which cancels
    `making`."""
    tasks: list[asyncio.Task[Job | None]] = [
        asyncio.create_task(making, name="carry a request out"),
        asyncio.create_task(_hold_until_lost(redis, reservation), name="renew a lease"),
    ]
    try:
        return await first_to_end(tasks)
    # unless the request was refused, the job may exist: keep its id, so that a repeat finds it
    except BaseException as error:
        was_refused = isinstance(error, HeadraceError) and not isinstance(error, Unavailable)
        await give_up(redis, reservation, keep=not was_refused)
        raise


async def reserve(redis: Redis, caller: str, headers: Mapping[str, str], body: bytes) -> ReservedRequest:
    """Reserve a job id for a request, or find the reservation of the request that it repeats. Raises `InvalidRequest`
    for an Idempotency-Key that was used with another body."""
    digest = hashlib.sha256(body).hexdigest()
    named = headers.get("idempotency-key") or None  # an empty one, of a variable that is not set, say, names nothing
    retried = headers.get("x-stainless-retry-count", "0") not in ("", "0")
    name = ("body", digest) if named is None else ("key", named)
    key = keys.request(hashlib.sha256(json.dumps([caller, *name]).encode()).hexdigest())
    mine = ReservedRequest(
        key, f"{new_id('ftjob-')} {digest}", _RETRIES_WITHIN if named is None else _DAY, repeated=False
    )
    may_replace = named is None and not retried

    async def undo(reserved: bool) -> None:
        if reserved:
            await give_up(redis, mine)

    if await acquire_or_undo(_reserved(redis, mine, may_replace), undo):
        return mine
    other = await run(redis.get(key))
    if other is None:  # it expired or was released between the two commands
        return await reserve(redis, caller, headers, body)
    record = _readable(key, other)
    _check_same(record, mine.record)
    return ReservedRequest(key, record, mine.seconds, repeated=True)


async def _reserved(redis: Redis, mine: ReservedRequest, may_replace: bool) -> bool:
    """Store the reservation under the request's name; whether that succeeded."""
    await _take(redis, mine)  # first the lease, so that nobody finds a reservation without one
    if await run(redis.set(mine.key, mine.record, ex=mine.seconds, nx=not may_replace)):
        return True
    await _release(redis, mine, keep=True)
    return False


async def give_up(redis: Redis, reservation: ReservedRequest, *, keep: bool = False) -> None:
    """Release the reservation of a failed request, so that a repeat is processed at once: as a new request, or with
    `keep` under the same job id. Does nothing if a repeat has taken it over. If Redis is unavailable, the lease
    expires."""
    with suppress(RedisError, Unavailable):
        await _release(redis, reservation, keep=keep)


async def _release(redis: Redis, reservation: ReservedRequest, *, keep: bool) -> None:
    lease = keys.request_lease(reservation.job_id)
    named = [lease] if keep else [lease, reservation.key, JobKeys(reservation.job_id).job]
    await run(redis.register_script(_GIVE_UP)(keys=named, args=[reservation.token, reservation.record]))


async def result(redis: Redis, jobs: JobStore, reservation: ReservedRequest) -> Job | None:
    """Wait for the first request's job. None if that request failed or died; then this request holds the lease. Raises
    `TimedOut`, and `InvalidRequest` or `Unavailable` if the Idempotency-Key now identifies another request."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        with suppress(NotFound):
            return await jobs.get(reservation.job_id)
        if await _take(redis, reservation):
            try:
                with suppress(NotFound):  # the first request may have finished just before
                    return await jobs.get(reservation.job_id)
                await _name_again(redis, reservation)
            except BaseException:
                await give_up(redis, reservation, keep=True)
                raise
            return None
        await asyncio.sleep(_POLL_SECONDS)
    raise TimedOut(f"the first request for job {reservation.job_id} made no job within {_WAIT_SECONDS:.0f} s")


async def _name_again(redis: Redis, reservation: ReservedRequest) -> None:
    """Store the reservation again if the first request released it; another request's reservation is not changed."""
    arguments: list[str | int] = [reservation.record, reservation.seconds]
    stands = await run(redis.register_script(_NAME_AGAIN)(keys=[reservation.key], args=arguments))
    if stands or not reservation.by_key:
        return
    other = await run(redis.get(reservation.key))
    if other is not None:
        _check_same(_readable(reservation.key, other), reservation.record)
    message = "another request with this Idempotency-Key has begun meanwhile: ask again"
    raise Unavailable(message, retry_after=RETRY_AFTER_SECONDS)


async def _take(redis: Redis, reservation: ReservedRequest) -> bool:
    """Try to take the lease; whether this request holds it. Releases it if this call is cancelled."""

    async def undo(taken: bool) -> None:
        if taken:
            await _release(redis, reservation, keep=True)

    return await acquire_or_undo(_hold(redis, reservation), undo)


async def _hold(redis: Redis, reservation: ReservedRequest) -> bool:
    """Extend the lease by `LEASE_SECONDS`; whether this request still holds it."""
    lease, milliseconds = keys.request_lease(reservation.job_id), int(LEASE_SECONDS * 1000)
    return bool(await run(redis.register_script(_HOLD)(keys=[lease], args=[reservation.token, milliseconds])))


def _claim(redis: Redis, reservation: ReservedRequest) -> JobClaim:
    async def is_alone() -> bool:
        try:
            held = await _hold(redis, reservation)
            return held and not await run(redis.exists(JobKeys(reservation.job_id).job))
        except (RedisError, HeadraceError):
            return False

    return JobClaim(reservation.job_id, is_alone)


async def _hold_until_lost(redis: Redis, reservation: ReservedRequest) -> None:
    """Renew the lease; returns when another request holds it."""
    held = True
    while held:
        await asyncio.sleep(LEASE_SECONDS / 3)
        with suppress(RedisError, HeadraceError):  # there are two more renewals before it expires
            held = await _hold(redis, reservation)


def _check_same(record: str, mine: str) -> None:
    """Raises `InvalidRequest` if the two records are of different bodies."""
    if record.split()[1] != mine.split()[1]:
        raise InvalidRequest("this Idempotency-Key was used with another body or path", code="idempotency_key_reused")


def _readable(key: str, raw: bytes) -> str:
    """Decode a reservation's record: job id and SHA-256 of the body. Raises `Damaged`."""
    record = raw.decode(errors="replace")
    if len(record.split()) != 2:
        error: Damaged = damaged(key, "it is no job id and sum")
        raise error
    return record
