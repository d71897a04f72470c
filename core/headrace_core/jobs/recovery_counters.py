"""Counts of what was done to keep a job running: restarts of its workers, and the watchdog's recovery actions."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from ..redis_access.client import run
from ..redis_access.json_records import none_if_damaged, whole_number
from ..redis_access.keys import JobKeys
from ..types.events import RecoveryAction

_RESTARTS = "restarts "
"""Prefix of the hash field that counts a worker's restarts; the worker's name follows."""


class RecoveryCounters:
    """The recovery counts of one job. They are stored in Redis, so they survive workers and controllers."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._redis = redis
        self._job_id = job_id
        self._key = JobKeys(job_id).mending

    async def count_action(self, act: RecoveryAction) -> None:
        """Count one recovery action."""
        await run(self._redis.hincrby(self._key, act, 1))

    async def count_restart(self, worker: str) -> None:
        """Count a restart of `worker`, whatever its cause."""
        await run(self._redis.hincrby(self._key, _RESTARTS + worker, 1))

    async def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """(actions by name, restarts by worker); see `counts_of`."""
        return counts_of(self._job_id, await run(self._redis.hgetall(self._key)))


def counts_of(job_id: str, raw: Mapping[bytes, bytes]) -> tuple[dict[str, int], dict[str, int]]:
    """(recovery actions by name, restarts by worker) in the hash `JobKeys.mending`. Damaged counts are skipped."""
    counts = dict[str, int]()
    for field, value in raw.items():
        name = field.decode(errors="replace")
        if (count := none_if_damaged(whole_number, value, f"{JobKeys(job_id).mending} {name}")) is not None:
            counts[name] = count
    restarts = {f.removeprefix(_RESTARTS): n for f, n in counts.items() if f.startswith(_RESTARTS)}
    return {f: n for f, n in counts.items() if not f.startswith(_RESTARTS)}, restarts
