"""A POST that is repeated makes one job, not two.

OpenAI's client repeats a POST that was not answered in time, without an Idempotency-Key, but with a count of its
retries. So: an `Idempotency-Key` names a request for a day; without one, an identical body with
`x-stainless-retry-count` > 0 is the request that came within the last minutes. What two callers send are two requests,
whatever they name them.

    first POST   ── reserves job id ──► checks, creates ──► answers the job      (failed: the reservation is given up)
    its repeat   ── finds the reservation, waits until the job is there ──► answers the same job
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import Request
from redis.asyncio import Redis

from headrace_core import keys
from headrace_core.errors import InvalidRequest, NotFound, TimedOut
from headrace_core.jobs import Job, JobStore, new_id
from headrace_core.redis import answer

from .context import Gateway
from .identity import made

_DAY = 86_400
_RETRIES_WITHIN = 300
_WAIT_SECONDS = 150.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to create job `job_id`; with `repeated`, another request has it."""

    key: str
    job_id: str
    repeated: bool


async def once(here: Gateway, request: Request, make: Callable[[str], Awaitable[Job]]) -> Job:
    """The job that `make` makes under the id it is given; of a repeated request, the one that the first made."""
    content = request.url.path.encode() + b"\n" + await request.body()
    asked = (here.redis, here.principal.name, request.headers, content)
    reservation = await reserve(*asked)
    while reservation.repeated:
        job = await result(here.redis, here.jobs, reservation)
        if job is not None:
            return job
        reservation = await reserve(*asked)
    try:
        job = await make(reservation.job_id)
    except BaseException:
        await give_up(here.redis, reservation)
        raise
    made(request, job.id)
    return job


async def reserve(redis: Redis, caller: str, headers: Mapping[str, str], body: bytes) -> Reservation:
    """Whether this request of `caller` is his first of its kind. Raises `InvalidRequest` for a key used with another
    body."""
    digest = hashlib.sha256(body).hexdigest()
    named = headers.get("idempotency-key")
    retried = headers.get("x-stainless-retry-count", "0") not in ("", "0")
    name = ("body", digest) if named is None else ("key", named)
    key = keys.request(hashlib.sha256(json.dumps([caller, *name]).encode()).hexdigest())
    mine = f"{new_id('ftjob-')} {digest}"
    seconds = _RETRIES_WITHIN if named is None else _DAY
    may_replace = named is None and not retried
    if await answer(redis.set(key, mine, ex=seconds, nx=not may_replace)):
        return Reservation(key, mine.split()[0], repeated=False)
    other = await answer(redis.get(key))
    if other is None:  # it expired or was given up between the two commands
        return await reserve(redis, caller, headers, body)
    job_id, other_digest = other.decode().split()
    if other_digest != digest:
        raise InvalidRequest("this Idempotency-Key was used with another body or path", code="idempotency_key_reused")
    return Reservation(key, job_id, repeated=True)


async def give_up(redis: Redis, reservation: Reservation) -> None:
    """The request failed: its repeat is to be carried out anew."""
    await answer(redis.delete(reservation.key))


async def result(redis: Redis, jobs: JobStore, reservation: Reservation) -> Job | None:
    """The job of the first request, once it is there; None when that request failed. Raises `TimedOut`."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            return await jobs.get(reservation.job_id)
        except NotFound:
            if not await answer(redis.exists(reservation.key)):
                return None
        await asyncio.sleep(_POLL_SECONDS)
    raise TimedOut(f"the first request for job {reservation.job_id} made no job within {_WAIT_SECONDS:.0f} s")
