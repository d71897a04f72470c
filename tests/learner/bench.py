"""One job of a learner on a real Redis, with the test in the rollout worker's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import TransitionOutcome
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.job import Job
from headrace_core.types.staleness import Limits
from headrace_lab.services.jobs import worker_config
from headrace_learner.worker import LearnerWorker

from .cases import hyperparameters, random_group

STEPS, BATCH, ROWS = 6, 4, 24


class Bench:
    """One job: its stores, and the configuration of its learner."""

    def __init__(self, redis: Redis, url: str, model: Path, folder: Path, name: str, **settings: object) -> None:
        self.job_id, self.redis = f"ftjob-{name}", redis
        self.ledger = Ledger(redis, self.job_id)
        self.jobs = JobStore(redis)
        self.output = folder / name
        self.settings = hyperparameters(**settings)
        self.weights = WeightStore(folder / "weights", self.job_id)
        self.config = worker_config(
            self.job_id,
            "learner",
            redis_url=url,
            weights_root=str(folder / "weights"),
            snapshots_root=str(folder),
            model_path=str(model),
            output_dir=str(self.output),
            rows=ROWS,
            total_steps=STEPS,
            hyperparameters=self.settings.model_dump(),
            stall_timeout=60.0,
        )

    @property
    def limits(self) -> Limits:
        return self.settings.limits(ROWS)

    async def open(self) -> None:
        job = Job(id=self.job_id, created_at=0.0, model="headrace/tiny", model_path="", training_file="file-x")
        await self.jobs.create(job)
        await self.ledger.open(self.limits)

    async def feed(self, until_version: int) -> None:
        """The rollout worker's part, in lockstep: batch v is sampled by v (and by v − 1, where there is one)."""
        while (version := (await self.ledger.newest())[0]) < until_version:
            admission = await self.ledger.admit("rollout-0", version, BATCH - await self._waiting(), 60)
            for lease in admission.leases:
                group = random_group(lease.group_id, (lease.version,))
                assert await self.ledger.commit(lease, group) is TransitionOutcome.QUEUED
            await self.next_version(version)

    async def _waiting(self) -> int:
        window = await self.ledger.window()
        return len(window.queued)

    async def next_version(self, version: int) -> None:
        heard = "0"
        async with asyncio.timeout(60):
            while (await self.ledger.newest())[0] == version:
                heard = await self.ledger.signal(heard, 0.1)

    def model(self) -> dict[str, torch.Tensor]:
        return load_file(self.output / "model" / "model.safetensors")


@asynccontextmanager
async def learner(config: WorkerConfig) -> AsyncIterator[LearnerWorker]:
    worker = LearnerWorker.from_config(config)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def train_whole(job: Bench) -> None:
    await job.open()
    async with learner(job.config) as worker:
        ended, _ = await asyncio.gather(worker.run(), job.feed(STEPS))
        assert ended == "finished"
