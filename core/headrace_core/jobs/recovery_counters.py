"""What was done to keep a job going, counted: restarts of its workers, and acts of whoever noticed a standstill."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from ..redis_access.client import run
from ..redis_access.json_records import if_sound, whole_number
from ..redis_access.keys import JobKeys
from ..types.events import Act

_RESTARTS = "restarts "
"""And a worker's name: its field."""


class RecoveryCounters:
    """One job's counts. They outlive workers and controllers."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._redis = redis
        self._job_id = job_id
        self._key = JobKeys(job_id).mending

    async def count_action(self, act: Act) -> None:
        await run(self._redis.hincrby(self._key, act, 1))

    async def restarted(self, worker: str) -> None:
        """Count a restart of `worker`, whatever its cause."""
        await run(self._redis.hincrby(self._key, _RESTARTS + worker, 1))

    async def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        return counts_of(self._job_id, await run(self._redis.hgetall(self._key)))


def counts_of(job_id: str, raw: Mapping[bytes, bytes]) -> tuple[dict[str, int], dict[str, int]]:
    """(acts by name, restarts by worker) in a job's hash of them; without those that are damaged."""
    every = dict[str, int]()
    for field, counted in raw.items():
        what = field.decode(errors="replace")
        if (count := if_sound(whole_number, counted, f"{JobKeys(job_id).mending} {what}")) is not None:
            every[what] = count
    restarts = {f.removeprefix(_RESTARTS): n for f, n in every.items() if f.startswith(_RESTARTS)}
    return {f: n for f, n in every.items() if not f.startswith(_RESTARTS)}, restarts
