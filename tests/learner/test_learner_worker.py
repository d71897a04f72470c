"""The learner on a real Redis with synthetic groups: settles, publishes, checkpoints, resumes bit-identically."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from learner_cases import hyperparameters, random_group
from redis.asyncio import Redis
from safetensors.torch import load_file

from headrace_core.jobs import Job, JobStore, model_name
from headrace_core.ledger import Ledger, Outcome
from headrace_core.staleness import Limits
from headrace_core.weights import WeightStore
from headrace_core.workers import WorkerConfig
from headrace_gateway.redis_server import RedisServer
from headrace_learner.worker import LearnerWorker

STEPS, BATCH, ROWS = 6, 4, 24


class Bench:
    """One job: its stores, and the configuration of its learner."""

    def __init__(self, redis: Redis, url: str, model: Path, folder: Path, name: str, **settings: object) -> None:
        self.job_id = f"ftjob-{name}"
        self.ledger = Ledger(redis, self.job_id)
        self.jobs = JobStore(redis)
        self.output = folder / name
        self.settings = hyperparameters(**settings)
        self.weights = WeightStore(folder / "weights", self.job_id)
        self.config = WorkerConfig(
            job_id=self.job_id,
            worker="learner",
            redis_url=url,
            weights_root=str(folder / "weights"),
            model_path=str(model),
            training_file="unused",
            validation_file=None,
            output_dir=str(self.output),
            rows=ROWS,
            total_steps=STEPS,
            grader={},
            hyperparameters=self.settings.model_dump(),
            stall_timeout=20.0,
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
                assert await self.ledger.commit(lease, group) is Outcome.QUEUED
            await self._next_version(version)

    async def _waiting(self) -> int:
        window = await self.ledger.window()
        return len(window.queued)

    async def _next_version(self, version: int) -> None:
        heard = "0"
        async with asyncio.timeout(20):
            while (await self.ledger.newest())[0] == version:
                heard = await self.ledger.signal(heard, 0.1)

    def model(self) -> dict[str, torch.Tensor]:
        return load_file(self.output / "model" / "model.safetensors")


@pytest.fixture
async def bench(redis: Redis, redis_server: RedisServer, model_folder: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(name: str, **settings: object) -> Bench:
        return Bench(redis, redis_server.url, model_folder, tmp_path, name, **settings)

    return make


@asynccontextmanager
async def learner(config: WorkerConfig) -> AsyncIterator[LearnerWorker]:
    worker = LearnerWorker(config)
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


async def test_a_job_is_trained_step_by_step(bench: Callable[..., Bench]) -> None:
    job = bench("whole", checkpoint_interval=2)
    await train_whole(job)
    account = await job.ledger.account()
    assert account.balanced
    assert (account.version, account.states["trained"]) == (STEPS, STEPS * BATCH)
    assert [c.step for c in await job.jobs.checkpoints(job.job_id)] == [6, 4, 2]
    stored = await job.jobs.get(job.job_id)
    steps = await job.ledger.steps()
    assert stored.trained_tokens == sum(sum(s.ages.values()) for s in steps) > 0
    metrics = [m for _, kind, m in await job.jobs.metrics(job.job_id) if kind == "step"]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert set(metrics[0]["seconds"]) == {"wait", "batch", "train", "publish", "settle", "checkpoint"}
    events = [e for _, e in await job.jobs.events(job.job_id) if e.type == "metrics"]
    assert events[0].message == f"Step 1/6, train mean reward={metrics[0]['reward_mean']:.2f}"
    assert events[0].data is not None
    assert events[0].data["staleness"] == {"age_mean": 0.0, "age_max": 0, "bound": 2}
    (beat,) = await job.jobs.workers(job.job_id)
    assert (beat.role, beat.worker) == ("learner", "learner")
    offered = (await job.jobs.checkpoints(job.job_id))[0]
    assert offered.model == model_name(stored, 6)
    assert (Path(offered.path) / "model" / "config.json").is_file()
    final, published = job.model(), load_file(job.weights.open("v00000006-t1") / "model.safetensors")
    assert final.keys() == published.keys()
    assert all(torch.equal(final[name], published[name]) for name in final)
