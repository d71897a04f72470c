"""Rollout workers that are to take no more leases: asked for by the gateway, obeyed by ledger and worker.

    gateway   ask ──► the ledger gives the worker no lease from here on ──► signal
    worker    finishes what it holds, or gives it back when its time is up; beats `drained`; stays up
    gateway   release ──► signal ──► the worker goes on

Invariants: from the moment a drain is asked for, also across restarts of the worker, it is given no lease until it is
released; a copy of either call that arrives late, when the other has come since, changes nothing.
"""

from __future__ import annotations

import secrets

import msgspec
from redis.asyncio import Redis

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import NotFound
from ..redis_access.client import run
from ..redis_access.json_records import decode_record, if_sound
from ..redis_access.keys import JobKeys
from ..redis_access.scripts import Script


class Drain(msgspec.Struct, frozen=True):
    """One worker is being drained."""

    asked_at: float
    """Unix seconds, as is the next."""
    until: float
    """What the worker still holds then, it gives back."""


class WorkerDrains:
    """Which rollout workers of one job are to take no more work."""

    def __init__(self, redis: Redis, job_id: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._redis, self._clock = redis, clock
        self._job_id = job_id
        self._keys = JobKeys(job_id)
        self._script = Script(redis, "drain")

    async def request(self, worker: str, seconds: float) -> None:
        """Give `worker` no more leases, and `seconds` for those it holds. Asked again, the time is set anew; a damaged
        drain is, too."""
        raw, now = await run(self._redis.hget(self._keys.drains, worker)), self._clock.time()
        before = None if raw is None else if_sound(self._read, worker, raw)
        drain = Drain(now if before is None else before.asked_at, now + seconds)
        await self._set(worker, msgspec.json.encode(drain))

    async def release(self, worker: str) -> bool:
        """Let it go on; whether it was being drained."""
        return await self._set(worker, b"") == b"drained"

    async def _set(self, worker: str, drain: bytes) -> bytes:
        """What it was before: `drained` or `free`. Raises `NotFound` where there is no such job."""
        before = await self._script(self._keys, "", secrets.token_hex(8), worker, drain)
        if before is None:
            raise NotFound(f"no job {self._job_id!r}", param="fine_tuning_job_id")
        return bytes(before)

    async def of(self, worker: str) -> Drain | None:
        """None where it is not being drained."""
        raw = await run(self._redis.hget(self._keys.drains, worker))
        return None if raw is None else self._read(worker, raw)

    async def all(self) -> dict[str, Drain]:
        """The drains in force, by worker."""
        raw = await run(self._redis.hgetall(self._keys.drains))
        names = {worker: worker.decode(errors="replace") for worker in raw}
        return {names[worker]: self._read(names[worker], drain) for worker, drain in raw.items()}

    def _read(self, worker: str, raw: bytes) -> Drain:
        return decode_record(raw, Drain, f"{self._keys.drains} {worker}")

    async def covers_all(self, workers: int) -> bool:
        """Whether all of a job's rollout workers, so many, are being drained: it is meant to stand still."""
        return int(await run(self._redis.hlen(self._keys.drains))) >= workers
