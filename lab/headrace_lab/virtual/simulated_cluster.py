"""A simulated cluster in virtual time, with the real scheduling code.

real       ledger and its Lua scripts on a Redis server · staleness.select · RolloutWorker with its leases, weight
           updates and evaluations · LearnerWorker with its sequence of stages · the weight store
simulated  the workers' components (`timed_workers`): engines, training, rewards, checkpoints
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
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.job import Job
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_rollout.worker import RolloutWorker

from .simulated_engine import DecodeSpeed, Lengths, SimulatedEngine
from .timed_workers import (
    BLOCK,
    FASTER,
    MAX_RUN_SECONDS,
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
    """The devices of one job, and its workload. Times are for real tokens, not blocks."""

    rollout_devices: int
    speed: DecodeSpeed
    slots: int
    """Completions that one device decodes at once."""
    trained_per_second: float
    """Tokens per second of all training devices together."""
    publish_seconds: float
    batch_size: int
    group_size: int
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Throughput:
    """Figures of one run in steady state."""

    max_staleness: int
    seconds: float
    """Duration of one step."""
    tokens_per_second: float
    """Tokens per second that contributed to a gradient."""
    masked_share: float
    """Share of masked tokens in the trained groups."""
    mean_age: float
    largest_age: int
    trainer_busy: float
    """Share of the time in which the trainer is busy."""
    devices_busy: float
    """Share of the rollout devices' time with a request in flight, mean over the devices."""
    requests_in_flight: float
    """Per rollout device, mean over time."""


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluations on the first rollout device, as in a job."""

    rows: int
    every: int
    """Interval in steps."""

    async def run(self, worker: RolloutWorker, training: TimedCoordinator) -> None:
        """Evaluate one version after the other until cancelled; skips versions if one takes longer than the
        interval."""
        version = 0
        while True:
            while len(training.steps) < version + self.every:
                await training.settled.wait()
            version = len(training.steps) // self.every * self.every
            await worker.evaluate(version)


def measure(
    cluster: Cluster, max_staleness: int, warm: int, steps: int, evaluations: Evaluations | None = None
) -> Throughput:
    """The throughput over `steps` steps, after `warm` steps of warm-up. Raises `TimeoutError` if the job gets stuck."""
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
    await redis.config_set("appendonly", "no")  # a simulated job need not be durable
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
        async with asyncio.timeout(MAX_RUN_SECONDS), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.run())
            evaluating = [] if evaluations is None else [tasks.create_task(evaluations.run(workers[0], training))]
            await learner.run()
            await cancel(evaluating)
            await job.ledger.close("finished")  # ends the rollout workers
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
    """A function from a worker's name to its config. `n_steps` is larger than the steps trained, so that the admission
    of groups does not run out at the end."""
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
            stall_timeout=MAX_RUN_SECONDS,
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
