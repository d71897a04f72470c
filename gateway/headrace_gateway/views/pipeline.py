"""The traffic between rollout and learner: queued groups in one direction, weights in the other."""

from __future__ import annotations

import time

import msgspec
from redis.asyncio import Redis

from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.weight_publications import Publications
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_records
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job
from headrace_core.types.metrics import UpdateMetrics

from ..schemas.control import QueuesObject, UpdateObject, WeightsObject

_LATELY = 400
"""Most recent weight updates that are read, of all workers together."""
_UPDATES = 20


async def queues(redis: Redis, jobs: JobStore, job: Job) -> QueuesObject:
    """Groups by stage, the pacing window, and what the stream of groups takes."""
    current = await Ledger(redis, job.id).queues()
    held = {stage.name: stage.bytes for stage in current.stages}
    stream, now = JobKeys(job.id).groups, time.time()
    return {
        "object": "fine_tuning.job.queues",
        "fine_tuning_job_id": job.id,
        "version": current.version,
        "stages": [
            {
                "stage": stage.name,
                "depth": stage.depth,
                "oldest_seconds": None if stage.since is None else max(0.0, now - stage.since),
                "oldest_versions": None if stage.version is None else current.version - stage.version,
            }
            for stage in current.stages
        ],
        "window": {
            "used": sum(stage.depth for stage in current.stages),
            "limit": (job.hyperparameters["max_staleness"] + 1) * job.hyperparameters["batch_size"],
        },
        "memory": {
            "groups": current.bytes,
            "queued": held["queued"],
            "claimed": held["claimed"],
            "kept": current.bytes - held["queued"] - held["claimed"],
            "share": current.share or None,
            "held_back": current.held_back,
            "left_out": await jobs.history.left_out(job.id),
        },
        "stream": int(await run(redis.xlen(stream))),
        "bytes": int(await run(redis.memory_usage(stream)) or 0),
    }


async def weights(redis: Redis, jobs: JobStore, job: Job) -> WeightsObject:
    """The published versions, and the weight updates of each rollout worker."""
    version, _ = await Ledger(redis, job.id).newest()
    entries = await jobs.history.newest(job.id, "update", None, _LATELY)
    updates = decode_records(((JobKeys(job.id).history("update"), entry.data) for entry in entries), UpdateMetrics)
    beats = [beat for beat in await jobs.workers(job.id) if beat.role == "rollout"]
    return {
        "object": "fine_tuning.job.weights",
        "fine_tuning_job_id": job.id,
        "version": version,
        "published": [msgspec.to_builtins(p) for p in await Publications(redis, job.id).last()],
        "workers": [
            {
                "worker": beat.worker,
                "version": beat.version,
                "lag": max(0, version - beat.version),
                "updates": [_update(u) for u in updates if u.worker == beat.worker][:_UPDATES],
            }
            for beat in beats
        ],
    }


def _update(update: UpdateMetrics) -> UpdateObject:
    return {
        "version": update.version,
        "time": update.time,
        "staged_seconds": update.staged_seconds,
        "paused_seconds": update.paused_seconds,
        "requests_in_flight": update.requests_in_flight,
    }
