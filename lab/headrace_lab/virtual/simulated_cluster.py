"""A simulated cluster around the real scheduler, in virtual time.

real       ledger and its Lua scripts on a redis-server · staleness.select · RolloutWorker and all it does with
           leases, weights and evaluations · LearnerWorker and its order of work · the weight store and its folders
simulated  what the workers are made of (`timed_workers`): engines · training · rewards and checkpoints
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from headrace_core.concurrency import cancel
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import Job
from headrace_core.protocols.worker import WorkerConfig
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_rollout.worker import RolloutWorker

from .simulated_engine import DecodeSpeed, Lengths, SimulatedEngine
from .timed_workers import (
    BLOCK,
    FASTER,
    LONGEST_RUN,
    ROWS,
    TRAINING,
    VALIDATION,
    Settled,
    TimedCoordinator,
    TimedTrainer,
    learner_worker,
    rollout_worker,
)
from .virtual_time import InlineRedis, LoopClock, run

JOB = "ftjob-cluster"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The devices of one job, and its work. Times are of real tokens, not of blocks."""

    rollout_devices: int
    speed: DecodeSpeed
    slots: int
    """Completions that one device's cache holds."""
    trained_per_second: float
    """Tokens, by all training devices together."""
    publish_seconds: float
    batch_size: int
    group_size: int
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Throughput:
    """Steady state of one run."""

    max_staleness: int
    seconds: float
    """Of one step."""
    tokens_per_second: float
    """That contributed to a gradient."""
    masked_share: float
    """Of the trained groups' tokens."""
    mean_age: float
    largest_age: int
    trainer_busy: float
    """Share of the time."""
    devices_busy: float
    """Share of the rollout devices' time with a request in flight, mean over the devices."""
    requests_in_flight: float
    """Per rollout device, mean over time."""


@dataclass(frozen=True, slots=True)
class Evaluations:
    """On the first rollout device, as in a job."""

    rows: int
    every: int
    """Steps."""

    async def run(self, worker: RolloutWorker, training: TimedCoordinator) -> None:
        """One after the other until cancelled; of the newest version, where an evaluation outlasts the interval."""
        version = 0
        while True:
            while len(training.steps) < version + self.every:
                await training.settled.wait()
            version = len(training.steps) // self.every * self.every
            await worker.evaluate(version)


def measure(
    cluster: Cluster, max_staleness: int, warm: int, steps: int, evaluations: Evaluations | None = None
) -> Throughput:
    """Steady state over `steps` steps, after `warm` of them. Raises `TimeoutError` where the job does not end."""
    with tempfile.TemporaryDirectory(prefix="headrace-cluster-") as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        try:
            return run(_measure(cluster, max_staleness, (warm, steps), server.url, folder, evaluations))
        finally:
            server.stop()


async def _measure(
    cluster: Cluster,
    max_staleness: int,
    measured: tuple[int, int],
    redis_url: str,
    folder: str,
    evaluations: Evaluations | None,
) -> Throughput:
    warm, steps = measured
    redis = InlineRedis(redis_url)
    await redis.config_set("appendonly", "no")  # nothing of a simulated job has to outlast a power loss
    blocks = -(-cluster.lengths.table(ROWS, cluster.group_size) // BLOCK)
    s = cluster.speed
    speed = DecodeSpeed(s.base * BLOCK / FASTER, s.each * BLOCK / FASTER, s.update_pause / FASTER)
    engines = [SimulatedEngine(speed, blocks) for _ in range(cluster.rollout_devices)]
    config = _config(cluster, max_staleness, warm + steps, redis_url, folder)
    job = JobRecord.on(cast(Any, redis), JOB, LoopClock(), LoopClock().time)
    evaluated = 0 if evaluations is None else evaluations.rows
    workers = [rollout_worker(config(f"rollout-{i}"), job, engine, evaluated) for i, engine in enumerate(engines)]
    trainer = TimedTrainer(cluster.trained_per_second)
    training = TimedCoordinator(trainer, cluster.publish_seconds)
    learner = learner_worker(config("learner"), job, trainer, training)
    await _open(job, config("learner"))
    await asyncio.gather(learner.start(), *(worker.start() for worker in workers))
    try:
        async with asyncio.timeout(LONGEST_RUN), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.run())
            beside = [] if evaluations is None else [tasks.create_task(evaluations.run(workers[0], training))]
            await learner.run()
            await cancel(beside)
            await job.ledger.close("finished")  # the rollout workers hear of it
    finally:
        await redis.aclose()
    return _throughput(max_staleness, training.steps, warm, engines)


async def _open(job: JobRecord, config: WorkerConfig) -> None:
    stored = Job(
        id=job.id,
        created_at=0.0,
        model="none",
        model_path="none",
        training_file=TRAINING,
        hyperparameters=config.hyperparameters,
        rows=config.rows,
        total_steps=config.total_steps,
        status="running",
    )
    await job.store.create(stored)
    await job.ledger.open(config.settings.limits(config.rows))


def _config(cluster: Cluster, max_staleness: int, steps: int, redis_url: str, folder: str) -> Any:
    """A function from a worker's name to its config. More groups may be admitted than are trained: no run-out."""
    hyperparameters = {
        "batch_size": cluster.batch_size,
        "group_size": cluster.group_size,
        "max_staleness": max_staleness,
        "n_steps": steps + max_staleness + 1,
        "max_tokens": cluster.lengths.cap,
        "max_context": 2 * cluster.lengths.cap,
        "max_running": cluster.slots,
        "rollout_workers": cluster.rollout_devices,
        "engine": "transformers",
        "reward_recheck": 0.0,
        "keep_rollouts": 0,
        "checkpoint_interval": 1,
    }
    grader = {"type": "string_check", "name": "none", "input": "", "reference": "", "operation": "eq"}

    def config(worker: str) -> WorkerConfig:
        return WorkerConfig(
            job_id=JOB,
            worker=worker,
            redis_url=redis_url,
            weights_root=folder,
            model_path=folder,
            training_file=TRAINING,
            validation_file=VALIDATION,
            output_dir=folder,
            rows=ROWS,
            total_steps=steps,
            grader=grader,
            hyperparameters=hyperparameters,
            stall_timeout=LONGEST_RUN,
        )

    return config


def _throughput(
    max_staleness: int, steps: Sequence[Settled], warm: int, engines: Sequence[SimulatedEngine]
) -> Throughput:
    began, measured = steps[warm - 1].at, steps[warm:]
    seconds = measured[-1].at - began
    contributing = sum((s.counts.contributing for s in measured), Counter[int]())
    masked = sum((s.counts.masked for s in measured), Counter[int]())
    total = steps[-1].at / FASTER
    return Throughput(
        max_staleness=max_staleness,
        seconds=seconds / len(measured),
        tokens_per_second=contributing.total() * BLOCK / seconds,
        masked_share=masked.total() / (masked.total() + contributing.total()),
        mean_age=sum(age * n for age, n in contributing.items()) / contributing.total(),
        largest_age=max(contributing),
        trainer_busy=sum(s.train_seconds for s in measured) / seconds,
        devices_busy=float(np.mean([e.busy_seconds for e in engines])) / total,
        requests_in_flight=float(np.mean([e.request_seconds for e in engines])) / total,
    )
