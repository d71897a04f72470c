"""Drains: rollout workers that take no more leases, on the gateway's request.

    gateway   request ──► from here on the ledger gives the worker no lease ──► signal
    worker    finishes its leases, or gives them back at the deadline; its heartbeat says `drained`; its process stays
    gateway   release ──► signal ──► the worker takes leases again

Invariants: from `request` to `release` the worker is given no lease, also if it restarts in between. A duplicate of
either call that arrives after the other call changes nothing.
"""

from __future__ import annotations

import secrets

import msgspec
from redis.asyncio import Redis

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import NotFound
from ..redis_access.client import run
from ..redis_access.json_records import decode_record, none_if_damaged
from ..redis_access.keys import JobKeys
from ..redis_access.scripts import Script


class Drain(msgspec.Struct, frozen=True):
    """The drain of one worker."""

    asked_at: float
    """When it was requested, Unix seconds."""
    until: float
    """Deadline, Unix seconds: leases that the worker still holds then are given back."""


class WorkerDrains:
    """The drains of one job's rollout workers."""

    def __init__(self, redis: Redis, job_id: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._redis, self._clock = redis, clock
        self._job_id = job_id
        self._keys = JobKeys(job_id)
        self._script = Script(redis, "drain")

    async def request(self, worker: str, seconds: float) -> None:
        """Give `worker` no more leases, and `seconds` to finish those it holds.

        A repeated request sets a new deadline; it also replaces a damaged drain.
        """
        raw, now = await run(self._redis.hget(self._keys.drains, worker)), self._clock.time()
        before = None if raw is None else none_if_damaged(self._read, worker, raw)
        drain = Drain(now if before is None else before.asked_at, now + seconds)
        await self._set(worker, msgspec.json.encode(drain))

    async def release(self, worker: str) -> bool:
        """End the worker's drain. Returns whether it was being drained."""
        return await self._set(worker, b"") == b"drained"

    async def _set(self, worker: str, drain: bytes) -> bytes:
        """Set a drain, or remove it (b''). Returns the worker's state before: `drained` or `free`.

        Raises `NotFound` if there is no such job.
        """
        before = await self._script(self._keys, "", secrets.token_hex(8), worker, drain)
        if before is None:
            raise NotFound(f"no job {self._job_id!r}", param="fine_tuning_job_id")
        return bytes(before)

    async def of(self, worker: str) -> Drain | None:
        """The worker's drain; None if it is not being drained."""
        raw = await run(self._redis.hget(self._keys.drains, worker))
        return None if raw is None else self._read(worker, raw)

    async def all(self) -> dict[str, Drain]:
        """All drains, by worker."""
        raw = await run(self._redis.hgetall(self._keys.drains))
        names = {worker: worker.decode(errors="replace") for worker in raw}
        return {names[worker]: self._read(names[worker], drain) for worker, drain in raw.items()}

    def _read(self, worker: str, raw: bytes) -> Drain:
        return decode_record(raw, Drain, f"{self._keys.drains} {worker}")

    async def covers_all(self, workers: int) -> bool:
        """Whether all of the job's `workers` rollout workers are being drained, so that it is meant to make no
        progress."""
        return int(await run(self._redis.hlen(self._keys.drains))) >= workers
