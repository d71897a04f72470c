"""A controller's heartbeat: a key in Redis that is there while its event loop runs.

controller  beat, every two seconds ──► key, expires after `watchdog_seconds`
gateway     starts ──► key, expires after `start_timeout`: time to load its libraries
            which of them are missing? ──► those that were in several looks are replaced
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.logs import get_logger
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys

BEAT_SECONDS = 2.0
_STARTING = b"starting"
"""In place of the beat, which is the controller's pid."""


class ControllerHeartbeats:
    """When the controller of each job was last heard of."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._kept = math.ceil(settings.watchdog_seconds + BEAT_SECONDS)
        self._start = math.ceil(settings.start_timeout)

    async def record_start(self, job_id: str) -> None:
        """One is about to be started, unless one beats."""
        await run(self._redis.set(JobKeys(job_id).controller, _STARTING, ex=self._start, nx=True))

    async def beat_forever(self, job_id: str) -> None:
        """From inside the controller. While Redis is away it tries on: what to do then, the controller's work says."""
        while True:
            try:
                await run(self._redis.set(JobKeys(job_id).controller, os.getpid(), ex=self._kept))
            except (RedisError, Unavailable) as error:
                get_logger(__name__).warning("controller's beat did not reach Redis", job=job_id, error=str(error))
            await asyncio.sleep(BEAT_SECONDS)

    async def missing(self, job_ids: Sequence[str]) -> list[str]:
        """Those of which there is no beat."""
        return [job_id for job_id, beat in await self._beats(job_ids) if beat is None]

    async def starting(self, job_ids: Sequence[str]) -> list[str]:
        """Those that are to start, and have not beaten yet."""
        return [job_id for job_id, beat in await self._beats(job_ids) if beat == _STARTING]

    async def _beats(self, job_ids: Sequence[str]) -> list[tuple[str, bytes | None]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.get(JobKeys(job_id).controller)
            found = await pipe.execute() if job_ids else []
        return list(zip(job_ids, found, strict=True))
