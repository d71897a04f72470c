"""A controller's heartbeat: a key in Redis that exists while the controller's event loop runs.

controller  heartbeat, every two seconds ──► key that expires after `watchdog_seconds`
gateway     starts a controller ──► key that expires after `start_timeout`: time to load its libraries
            polls the keys ──► a controller whose key is missing in several polls is replaced
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
"""Value of the key until the first heartbeat; from then on the value is the controller's process id."""


class ControllerHeartbeats:
    """Writes and reads the heartbeats of all controllers."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._expiry = math.ceil(settings.watchdog_seconds + BEAT_SECONDS)
        self._start_expiry = math.ceil(settings.start_timeout)

    async def record_start(self, job_id: str) -> None:
        """Record that a controller is about to be started. Does nothing where one has a heartbeat."""
        await run(self._redis.set(JobKeys(job_id).controller, _STARTING, ex=self._start_expiry, nx=True))

    async def beat_forever(self, job_id: str) -> None:
        """Called by the controller; never returns.

        Retries while Redis is unavailable: whether the job can continue without Redis is decided elsewhere, by the
        calls of the controller that need it.
        """
        while True:
            try:
                await run(self._redis.set(JobKeys(job_id).controller, os.getpid(), ex=self._expiry))
            except (RedisError, Unavailable) as error:
                get_logger(__name__).warning("controller's heartbeat did not reach Redis", job=job_id, error=str(error))
            await asyncio.sleep(BEAT_SECONDS)

    async def missing(self, job_ids: Sequence[str]) -> list[str]:
        """The jobs whose controller has neither a heartbeat nor a recent start."""
        return [job_id for job_id, beat in await self._beats(job_ids) if beat is None]

    async def starting(self, job_ids: Sequence[str]) -> list[str]:
        """The jobs whose controller is being started and has not sent a heartbeat yet."""
        return [job_id for job_id, beat in await self._beats(job_ids) if beat == _STARTING]

    async def _beats(self, job_ids: Sequence[str]) -> list[tuple[str, bytes | None]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.get(JobKeys(job_id).controller)
            values = await pipe.execute() if job_ids else []
        return list(zip(job_ids, values, strict=True))
