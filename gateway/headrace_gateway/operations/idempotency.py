"""A POST that is repeated makes one job, not two.

OpenAI's client repeats a POST that was not answered in time, without an Idempotency-Key, but with a count of its
retries. So: an `Idempotency-Key` names a request for a day; without one, an identical body with
`x-stainless-retry-count` > 0 is the request that came within the last minutes. What two callers send are two requests,
whatever they name them.

    first POST  ── reserves job id, leases it ──► checks, creates ──► answers the job     (failed: both are given up)
                     └── renews the lease ─ … ─┘
    its repeat  ── finds the reservation ──► waits until the job is there ──► answers the same job
                                          └► the lease is gone: takes it, carries the request out under the same id

Invariants: all that is made of one request has one job id. So a gateway that dies blocks its requests' names for
`LEASE_SECONDS` only. A lease has the token of the request that holds it: a request that was merely slow, and whose
lease another one took over, stops and waits for the other's job. It neither frees the name nor the other's lease.
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
from headrace_core.jobs.job_store import Job, JobStore, new_id
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import RETRY_AFTER_SECONDS, run
from headrace_core.redis_access.json_records import damaged
from headrace_core.redis_access.keys import JobKeys

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
    """The right to create job `job_id`; with `repeated`, another request has it."""

    key: str
    record: str
    seconds: int
    """For which the reservation is kept."""
    repeated: bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this request alone: the value of the lease while it holds it."""

    @property
    def by_key(self) -> bool:
        """Whether an Idempotency-Key names the request, not its body: one key has one job."""
        return self.seconds == _DAY

    @property
    def job_id(self) -> str:
        """Under which the request is carried out, whoever does."""
        return self.record.split()[0]


@dataclass(frozen=True, slots=True)
class JobClaim:
    """What a request that is carried out knows of itself."""

    job_id: str
    """Under which it makes its job."""
    is_alone: Callable[[], Awaitable[bool]]
    """Whether what it made under that id may be taken away again: no other request has taken it over, or does within
    the next `LEASE_SECONDS`, and there is no job. False where Redis cannot be asked."""


async def create_once(
    here: GatewayContext, request: Request, make: Callable[[JobClaim], Coroutine[Any, Any, Job]]
) -> Job:
    """The job that `make` makes; of a repeated request, the one that the first made."""
    content = request.url.path.encode() + b"\n" + await request.body()
    reservation = await reserve(here.redis, here.principal.name, request.headers, content)
    while True:
        if reservation.repeated and (job := await result(here.redis, here.jobs, reservation)) is not None:
            unchanged(request)
            return job
        if (job := await _carried_out(here.redis, reservation, make(_claim(here.redis, reservation)))) is not None:
            note_created_id(request, job.id)
            return job
        reservation = replace(reservation, repeated=True)


async def _carried_out(redis: Redis, reservation: ReservedRequest, making: Coroutine[Any, Any, Job]) -> Job | None:
    """The job; None where another request has taken the lease over: `making` is cancelled then."""
    tasks: list[asyncio.Task[Job | None]] = [
        asyncio.create_task(making, name="carry a request out"),
        asyncio.create_task(_hold_until_lost(redis, reservation), name="renew a lease"),
    ]
    try:
        return await first_to_end(tasks)
    except BaseException as error:  # unless it was refused, there may be a job: it is looked for under this id
        was_refused = isinstance(error, HeadraceError) and not isinstance(error, Unavailable)
        await give_up(redis, reservation, keep=not was_refused)
        raise


async def reserve(redis: Redis, caller: str, headers: Mapping[str, str], body: bytes) -> ReservedRequest:
    """Whether this request is the first of its kind by `caller`. Raises `InvalidRequest` for a key used with another
    body."""
    digest = hashlib.sha256(body).hexdigest()
    named = headers.get("idempotency-key")
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
    if other is None:  # it expired or was given up between the two commands
        return await reserve(redis, caller, headers, body)
    record = _readable(key, other)
    _check_same(record, mine.record)
    return ReservedRequest(key, record, mine.seconds, repeated=True)


async def _reserved(redis: Redis, mine: ReservedRequest, may_replace: bool) -> bool:
    """Whether the request's name stands for this reservation from now on."""
    await _take(redis, mine)  # before there is a reservation that somebody could find without its lease
    if await run(redis.set(mine.key, mine.record, ex=mine.seconds, nx=not may_replace)):
        return True
    await _release(redis, mine, keep=True)
    return False


async def give_up(redis: Redis, reservation: ReservedRequest, *, keep: bool = False) -> None:
    """The request failed: its repeat is to be carried out at once, as another one, or with `keep` under the same id.
    Nothing changes where another request has taken it over. Where Redis is away, the lease ends by itself."""
    with suppress(RedisError, Unavailable):
        await _release(redis, reservation, keep=keep)


async def _release(redis: Redis, reservation: ReservedRequest, *, keep: bool) -> None:
    lease = keys.request_lease(reservation.job_id)
    named = [lease] if keep else [lease, reservation.key, JobKeys(reservation.job_id).job]
    await run(redis.register_script(_GIVE_UP)(keys=named, args=[reservation.token, reservation.record]))


async def result(redis: Redis, jobs: JobStore, reservation: ReservedRequest) -> Job | None:
    """The job of the first request, once it is there; None where that one failed or died, and this one has the lease
    now. Raises `TimedOut`, and `InvalidRequest` or `Unavailable` where the Idempotency-Key names another request by
    now."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        with suppress(NotFound):
            return await jobs.get(reservation.job_id)
        if await _take(redis, reservation):
            try:
                with suppress(NotFound):  # it may have ended well just before
                    return await jobs.get(reservation.job_id)
                await _name_again(redis, reservation)
            except BaseException:
                await give_up(redis, reservation, keep=True)
                raise
            return None
        await asyncio.sleep(_POLL_SECONDS)
    raise TimedOut(f"the first request for job {reservation.job_id} made no job within {_WAIT_SECONDS:.0f} s")


async def _name_again(redis: Redis, reservation: ReservedRequest) -> None:
    """Let the request's name stand for it, where the first has given it up; that of another is left alone."""
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
    """Whether this request has the lease from now on. One that is cancelled has not."""

    async def undo(taken: bool) -> None:
        if taken:
            await _release(redis, reservation, keep=True)

    return await acquire_or_undo(_hold(redis, reservation), undo)


async def _hold(redis: Redis, reservation: ReservedRequest) -> bool:
    """Whether this request holds the lease for another `LEASE_SECONDS`."""
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
    """Returns when another request holds the lease."""
    held = True
    while held:
        await asyncio.sleep(LEASE_SECONDS / 3)
        with suppress(RedisError, HeadraceError):  # two more tries before it ends
            held = await _hold(redis, reservation)


def _check_same(record: str, mine: str) -> None:
    """Raises `InvalidRequest` where the two are of different bodies."""
    if record.split()[1] != mine.split()[1]:
        raise InvalidRequest("this Idempotency-Key was used with another body or path", code="idempotency_key_reused")


def _readable(key: str, raw: bytes) -> str:
    """A reservation's record: job id and SHA-256 of the body. Raises `Damaged`."""
    record = raw.decode(errors="replace")
    if len(record.split()) != 2:
        error: Damaged = damaged(key, "it is no job id and sum")
        raise error
    return record
