"""The policy versions that a learner has published, for those who look on: the weights themselves may be out of reach.

Invariant: the last `KEPT` are known, newest first, also when their weights are gone.
"""

from __future__ import annotations

import time

import msgspec
from redis.asyncio import Redis

from ..redis_access.client import run
from ..redis_access.json_records import decode_records
from ..redis_access.keys import JobKeys
from ..storage.weight_store import Published

KEPT = 50


class Publication(msgspec.Struct, frozen=True):
    """One policy version, published."""

    version: int
    name: str
    """Of its folder in the weight store."""
    bytes: int
    seconds: float
    """How long it took to write."""
    published_at: float


class Publications:
    """When each policy version of one job was published."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._redis = redis
        self._key = JobKeys(job_id).published

    async def add(self, done: Published) -> None:
        """It has just been published."""
        line = Publication(done.version, done.name, done.bytes, done.seconds, time.time())
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(self._key, msgspec.json.encode(line))
            pipe.ltrim(self._key, 0, KEPT - 1)
            await pipe.execute()

    async def last(self) -> list[Publication]:
        """Newest first."""
        raw = await run(self._redis.lrange(self._key, 0, -1))
        return decode_records(((f"{self._key}[{i}]", record) for i, record in enumerate(raw)), Publication)
