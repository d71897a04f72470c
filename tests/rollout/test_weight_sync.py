"""Which version an engine has: waits for weights and for versions, which last as long as the one waited for moves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.errors import TimedOut, WeightsDamaged
from headrace_core.jobs.job_record import JobRecord
from headrace_core.ledger.records import Step, TransitionOutcome
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.staleness import Limits
from headrace_core.types.trajectory import Group, sampled_completion
from headrace_lab.services.jobs import heartbeat
from headrace_rollout.engines.engine import UpdateMode, UpdateReport
from headrace_rollout.weight_sync import SyncResult, WeightSync
from headrace_rollout.worker_reporter import WorkerReporter

JOB = "ftjob-sync"
LIMIT = 0.3
WEIGHTS = "v00000001-t1"


class Engine:
    """A twin of an engine, whose update ends when `release` is set."""

    def __init__(self) -> None:
        self.version = self.sampled_tokens = 0
        self.release = asyncio.Event()

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        await self.release.wait()
        self.version = version
        return UpdateReport(version, 0.0, 0.0, 0)


@pytest.fixture
async def job(redis: Redis) -> JobRecord:
    """A job at version 1, whose weights are nowhere yet."""
    job = JobRecord.on(redis, JOB)
    await job.ledger.open(Limits(max_staleness=1, batch_size=1, total_groups=4))
    lease = (await job.ledger.admit("rollout-0", 0, 1, 60.0)).leases[0]
    tokens, zeros = np.array([5], np.int32), np.zeros(1, np.int32)
    done = sampled_completion(tokens, np.zeros(1, np.float32), zeros, "stop", reward=1.0)
    await job.ledger.commit(lease, Group(lease.group_id, 1, 0, 0, tokens, (done,)))
    term = await job.ledger.enlist()
    await job.ledger.claim(term, Limits(max_staleness=1, batch_size=1, total_groups=4), "mask", 0, 0)
    settled = await job.ledger.settle(term, Step(0, (lease.group_id,), {0: 1}, 0), WEIGHTS)
    assert settled is TransitionOutcome.SETTLED
    return job


def sync(job: JobRecord, engine: Engine, folder: Path) -> WeightSync:
    return WeightSync(cast(Any, engine), job, WeightStore(folder, JOB), WorkerReporter(job, "rollout-0"), LIMIT)


async def learner_computed(job: JobRecord, tokens: int) -> None:
    beat = heartbeat("learner", computed_tokens=tokens)
    await job.store.record_heartbeat(JOB, beat)


async def test_missing_weights_are_waited_for_as_long_as_the_learner_computes(job: JobRecord, tmp_path: Path) -> None:
    """After a restart of the machine, it replays steps before it publishes them again."""
    engine = Engine()
    engine.release.set()
    waiting = asyncio.create_task(sync(job, engine, tmp_path).catch_up())
    for tokens in range(1, 16):
        await learner_computed(job, tokens)
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
    WeightStore(tmp_path, JOB).publish(1, 1, lambda folder: (folder / "w").touch())
    assert await asyncio.wait_for(waiting, 20) is SyncResult.APPLIED
    assert engine.version == 1


async def test_missing_weights_are_an_error_once_the_learner_computes_nothing(job: JobRecord, tmp_path: Path) -> None:
    await learner_computed(job, 7)
    with pytest.raises(WeightsDamaged):
        await asyncio.wait_for(sync(job, Engine(), tmp_path).catch_up(), 20)


async def test_an_evaluation_waits_for_an_update_as_long_as_running_requests_sample(
    job: JobRecord, tmp_path: Path
) -> None:
    WeightStore(tmp_path, JOB).publish(1, 1, lambda folder: (folder / "w").touch())
    engine = Engine()
    subject = sync(job, engine, tmp_path)
    updating = asyncio.create_task(subject.catch_up())

    async def version() -> int:
        async with subject.held(1, LIMIT) as held:
            return held

    waiting = asyncio.create_task(version())
    for _ in range(15):
        engine.sampled_tokens += 1
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
    with pytest.raises(TimedOut, match="policy version 1 was waited for"):
        await asyncio.wait_for(waiting, 20)
    waiting = asyncio.create_task(version())
    engine.release.set()
    assert await asyncio.wait_for(waiting, 20) == 1
    await updating
