"""Rollout workers that are to take no more leases: asked for by the gateway, obeyed by ledger and worker.

    gateway   ask ──► the ledger gives the worker no lease from here on ──► signal
    worker    finishes what it holds, or gives it back when its time is up; beats `drained`; stays up
    gateway   release ──► signal ──► the worker goes on

Invariant: from the moment a drain is asked for, also across restarts of the worker, it is given no lease until it is
released.
"""

from __future__ import annotations

import time

import msgspec
from redis.asyncio import Redis

from .keys import JobKeys
from .records import read
from .redis import answer


class Drain(msgspec.Struct, frozen=True):
    """One worker is being drained."""

    asked_at: float
    """Unix seconds, as is the next."""
    until: float
    """What the worker still holds then, it gives back."""


class Drains:
    """Those of one job."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._redis = redis
        self._keys = JobKeys(job_id)

    async def ask(self, worker: str, seconds: float) -> None:
        """Give `worker` no more leases, and `seconds` for those it holds. Asked again, the time is set anew."""
        before, now = await self.of(worker), time.time()
        drain = Drain(now if before is None else before.asked_at, now + seconds)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.drains, worker, msgspec.json.encode(drain))
            _wake(pipe, self._keys.signals)
            await pipe.execute()

    async def release(self, worker: str) -> bool:
        """Let it go on; whether it was being drained."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.drains, worker)
            _wake(pipe, self._keys.signals)
            removed, _ = await pipe.execute()
        return bool(removed)

    async def of(self, worker: str) -> Drain | None:
        """None where it is not being drained."""
        raw = await answer(self._redis.hget(self._keys.drains, worker))
        return None if raw is None else read(raw, Drain, f"{self._keys.drains} {worker}")

    async def all(self) -> dict[str, Drain]:
        """By worker."""
        raw = await answer(self._redis.hgetall(self._keys.drains))
        return {w.decode(): read(drain, Drain, f"{self._keys.drains} {w.decode()}") for w, drain in raw.items()}

    async def hold_all(self, workers: int) -> bool:
        """Whether all of a job's rollout workers, so many, are being drained: it is meant to stand still."""
        return int(await answer(self._redis.hlen(self._keys.drains))) >= workers


def _wake(pipe: Redis, signals: str) -> None:
    pipe.xadd(signals, {"what": "drain"}, maxlen=256, approximate=True)
