"""Jobs in short, for a list of many: a page in two round trips, from figures that are kept as they come.

What a job measured is not read here: `headrace_core.jobs.history` keeps the newest figures and the sparklines of every
job.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from redis.asyncio import Redis

from headrace_core.jobs.history import Spark
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.json_records import decode_records, none_if_damaged, whole_number
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job

from ..schemas.observe import OverviewObject
from ..web.pagination import page
from .eta import estimated_finish
from .objects import failure_object

T = TypeVar("T")
_FIGURES = ["version", "largest_age", "largest_age_bound"]


class _Rewarded(msgspec.Struct, frozen=True):
    """What is wanted of a step or an evaluation."""

    reward_mean: float | None


async def overview(redis: Redis, store: JobStore, after: str | None, limit: int) -> tuple[list[OverviewObject], bool]:
    """(jobs in short, newest first, from the one after `after`; whether there are more). Raises `InvalidRequest`."""
    jobs, has_more = page(await store.all(), after, limit)
    async with redis.pipeline(transaction=False) as pipe:
        for job in jobs:
            keys = JobKeys(job.id)
            pipe.hmget(keys.ledger, _FIGURES)
            pipe.hmget(keys.summary, ["step", "evaluation", "spark"])
        replies = await pipe.execute()
    return [_short(*of_job) for of_job in zip(jobs, replies[::2], replies[1::2], strict=True)], has_more


def _newest(where: str, raw: bytes | None, otherwise: T) -> T:
    """What is kept, where there is something, and it can be read."""
    records = [] if raw is None else decode_records([(where, raw)], type(otherwise))
    return records[0] if records else otherwise


def _short(job: Job, counts: list[bytes | None], newest: list[bytes | None]) -> OverviewObject:
    ledger = JobKeys(job.id).ledger
    figures = zip(_FIGURES, counts, strict=True)
    version, largest_age, bound = (none_if_damaged(whole_number, count, f"{ledger} {name}") for name, count in figures)
    where = JobKeys(job.id).summary
    step, evaluation = (_newest(where, raw, _Rewarded(None)).reward_mean for raw in newest[:2])
    spark = _newest(where, newest[2], Spark())
    finish = estimated_finish(job)
    return {
        "id": job.id,
        "object": "headrace.overview.job",
        "status": job.status,
        "model": job.model,
        "suffix": job.suffix,
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "step": version,
        "total_steps": job.total_steps,
        "reward_mean": step,
        "evaluation_reward_mean": evaluation,
        "max_staleness": job.hyperparameters.get("max_staleness"),
        "largest_age": largest_age,
        "largest_age_bound": None if counts[2] is None else bound,
        "spark": {"reward": spark.reward, "age": spark.age},
        "estimated_finish": None if finish is None else int(finish),
        "error": failure_object(job),
    }
