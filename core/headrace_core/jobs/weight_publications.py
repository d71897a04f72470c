"""The list of policy versions that a learner has published, for the gateway, which may not reach the weight store.

Invariant: the last `MAX_PUBLICATIONS` are listed, newest first, also those whose weights have been removed.
"""

from __future__ import annotations

import time

import msgspec
from redis.asyncio import Redis

from ..redis_access.client import run
from ..redis_access.json_records import decode_records
from ..redis_access.keys import JobKeys
from ..storage.weight_store import Published

MAX_PUBLICATIONS = 50


class Publication(msgspec.Struct, frozen=True):
    """One published policy version."""

    version: int
    name: str
    """Name of its folder in the weight store."""
    bytes: int
    seconds: float
    """How long the write took."""
    published_at: float
    """Unix seconds."""


class Publications:
    """The published policy versions of one job."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._redis = redis
        self._key = JobKeys(job_id).published

    async def add(self, published: Published) -> None:
        """Append a version that has just been published."""
        line = Publication(published.version, published.name, published.bytes, published.seconds, time.time())
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(self._key, msgspec.json.encode(line))
            pipe.ltrim(self._key, 0, MAX_PUBLICATIONS - 1)
            await pipe.execute()

    async def last(self) -> list[Publication]:
        """The newest publications, newest first. Damaged entries are skipped."""
        raw = await run(self._redis.lrange(self._key, 0, -1))
        return decode_records(((f"{self._key}[{i}]", record) for i, record in enumerate(raw)), Publication)
