"""Finds the records in Redis that cannot be read, for `headrace doctor`, which lists them. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from headrace_core.errors import Damaged
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Checkpoint

from ..auth.api_keys import ApiKey
from ..files.file_store import StoredFile


async def damaged(redis: Redis) -> list[Damaged]:
    """An error for every job, uploaded file, key, checkpoint and ledger that cannot be read."""
    jobs, broken = await JobStore(redis).readable_and_damaged()
    errors = list(broken.values())
    kinds = [(keys.FILES, StoredFile), (keys.API_KEYS, ApiKey)]
    for key, kind in [*kinds, *((JobKeys(job.id).checkpoints, Checkpoint) for job in jobs)]:
        errors += [error async for error in _of_hash(redis, key, kind)]
    for job in jobs:
        try:
            await Ledger(redis, job.id).counts()
        except Damaged as error:
            errors.append(error)
    return errors


async def _of_hash(redis: Redis, key: str, kind: type[Any]) -> AsyncIterator[Damaged]:
    for field, record in (await run(redis.hgetall(key))).items():
        try:
            decode_record(record, kind, f"{key} {field.decode(errors='replace')}")
        except Damaged as error:
            yield error
