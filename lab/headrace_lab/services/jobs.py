"""Stored jobs for tests and benchmarks: a plain one, and seeded ones, whose records in Redis look as if they had run,
with measurements of all kinds in a plausible order.

They are for what shows jobs, without training any.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.counts import STATES
from headrace_core.protocols.worker import LEARNER_NAME, WorkerConfig
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import ENDED, Job, JobError, Status
from headrace_core.types.metrics import (
    AgeMetrics,
    EvaluationMetrics,
    Metrics,
    StepMetrics,
    UpdateMetrics,
    WorkerMetrics,
)

STEP_SECONDS = 1.5
BATCH, GROUP_SIZE, BOUND = 16, 8, 4
TOKENS = BATCH * GROUP_SIZE * 60
PATHS: dict[Status, tuple[Status, ...]] = {
    "validating_files": (),
    "queued": ("queued",),
    "running": ("queued", "running"),
    "paused": ("queued", "running", "paused"),
    "succeeded": ("queued", "running", "succeeded"),
    "failed": ("queued", "running", "failed"),
    "cancelled": ("queued", "running", "cancelled"),
}
"""The sequence of statuses that leads to each status."""


class StepNumber(msgspec.Struct, frozen=True):
    """The data of a seeded step's event."""

    step: int


def stored_job(job_id: str = "ftjob-1", **changes: Any) -> Job:
    """A job as submission would store it, with the fields of `changes`."""
    hyperparameters = {"max_staleness": 2, "late": "mask", "n_epochs": None, "batch_size": 4, "algorithm": "grpo"}
    job = Job(
        id=job_id,
        created_at=1.0,
        model="headrace/tiny-adder",
        model_path="/m",
        training_file="file-1",
        hyperparameters=hyperparameters,
        total_steps=10,
    )
    return msgspec.structs.replace(job, **changes)


def worker_config(job_id: str = "ftjob-1", worker: str = "rollout-0", **changes: Any) -> WorkerConfig:
    """Of a worker that reaches nothing (no Redis, no folder, no model), with the fields of `changes`."""
    config = WorkerConfig(
        job_id=job_id,
        worker=worker,
        redis_url="",
        weights_root="",
        model_path="",
        training_file="",
        validation_file=None,
        output_dir="",
        rows=1,
        total_steps=1,
        grader={},
        hyperparameters={},
    )
    return msgspec.structs.replace(config, **changes)


@dataclass(frozen=True)
class Seeded:
    """One job that has made `steps` of `total` steps."""

    number: int
    steps: int
    total: int
    status: Status = "running"
    workers: int = 2
    beats: int = 1
    """Heartbeats of each worker per step; 0: none in the whole job."""
    tells: bool = False
    """Whether there is an event for each step, as in real jobs."""
    error: str | None = None
    suffix: str = "seeded"
    began: float = 1_700_000_000.0

    @property
    def id(self) -> str:
        return f"ftjob-{self.number:024d}"

    def job(self) -> Job:
        """The job as the gateway would store it."""
        settings: dict[str, Any] = {"batch_size": BATCH, "group_size": GROUP_SIZE, "max_staleness": BOUND}
        settings |= {"n_steps": self.total, "learning_rate": 1e-4 if self.number % 2 else 3e-4}
        grader = {"type": "string_check", "name": "answer", "operation": "eq", "input": "{{ sample.output_text }}"}
        return Job(
            id=self.id, created_at=self.began, model="headrace/tiny-adder", model_path="/models/tiny-adder",
            training_file="file-seeded", suffix=f"{self.suffix}-{self.number}", total_steps=self.total, rows=1000,
            hyperparameters=Hyperparameters.model_validate(settings).model_dump(mode="json"),
            grader={**grader, "reference": "{{ item.answer }}"},
        )  # fmt: skip

    def measurements(self, after: int = 0) -> Iterator[Metrics]:
        """All measurements from step `after` + 1 on."""
        random_numbers = random.Random(self.number * 1_000_003 + after)
        if after == 0 and self.steps:
            yield self._evaluation(0)
        for step in range(after + 1, self.steps + 1):
            yield _step(step, self.total, self._time(step), random_numbers)
            for worker in range(self.workers):
                if self.beats:
                    yield self._update(worker, step, random_numbers)
            for beat in range(self.beats):
                yield from self._beats(step, (beat + 1) / self.beats)
            if step % max(1, self.total // 20) == 0:
                yield self._evaluation(step)

    def _time(self, step: float) -> float:
        return self.began + 20 + step * STEP_SECONDS

    def _evaluation(self, step: int) -> EvaluationMetrics:
        return EvaluationMetrics(
            step=step, time=self._time(step), seconds=1.0, samples=64, reward_mean=_learned(step, self.total),
            components={}, reward_failed=0, completion_length=30.0,
        )  # fmt: skip

    def _update(self, worker: int, step: int, random_numbers: random.Random) -> UpdateMetrics:
        slow = 2.2 * STEP_SECONDS if worker == self.workers - 1 and step % 40 > 30 else 0.1
        return UpdateMetrics(
            worker=f"rollout-{worker}", time=self._time(step) + slow, version=step,
            staged_seconds=random_numbers.uniform(0.02, 0.08), paused_seconds=random_numbers.uniform(0.004, 0.02),
            requests_in_flight=32,
        )  # fmt: skip

    def _beats(self, step: int, part: float) -> Iterator[WorkerMetrics]:
        uptime = (step - 1 + part) * STEP_SECONDS
        common: Any = {"time": self._time(step - 1 + part), "uptime": uptime, "running": 32}
        for worker in range(self.workers):
            yield WorkerMetrics(
                worker=f"rollout-{worker}", role="rollout", version=step - 1, busy=0.82 * uptime,
                waiting={"window": 0.13 * uptime, "weights": 0.04 * uptime}, groups=step * BATCH // self.workers,
                tokens=int(TOKENS * (step - 1 + part) / self.workers), **common,
            )  # fmt: skip
        yield WorkerMetrics(
            worker="learner", role="learner", version=step - 1, busy=0.55 * uptime, waiting={"groups": 0.42 * uptime},
            tokens=int(TOKENS * (step - 1)), groups=step * BATCH, **common,
        )  # fmt: skip

    async def store(self, redis: Redis) -> None:
        """Store the job with its status, its ledger's counts and all measurements."""
        jobs, job = JobStore(redis), self.job()
        await jobs.create(job)
        ended = None if self.error is None else JobError("worker_error", self.error)
        for status in PATHS[self.status]:
            await jobs.move(self.id, status, ended if status == self.status else None)
        await jobs.emit_event(self.id, f"Job {self.suffix}-{self.number} begins with {self.workers} rollout workers")
        if self.error is not None:
            await jobs.emit_event(self.id, self.error, level="error")
        await self.record(redis)

    async def record(self, redis: Redis, after: int = 0) -> None:
        """Store the measurements after step `after`, and the final counts of the ledger."""
        jobs = JobStore(redis)
        for measured in self.measurements(after):
            if isinstance(measured, WorkerMetrics):
                await jobs.record_heartbeat(self.id, measured)
            else:
                await jobs.record(self.id, measured)
            if self.tells and isinstance(measured, StepMetrics):
                message = f"Step {measured.step}/{measured.total_steps}: reward {measured.reward_mean:.3f}"
                await jobs.emit_event(self.id, message, type="metrics", data=StepNumber(measured.step))
        await run(redis.hset(JobKeys(self.id).ledger, mapping=self._counter_fields()))

    def _counter_fields(self) -> dict[Any, Any]:
        trained = self.steps * BATCH
        under_way = {} if self.status in ENDED or not self.steps else {"queued": 21, "leased": 34, "claimed": BATCH}
        ended = {"trained": trained, "dropped_stale": trained // 40, "filtered": trained // 25}
        states = dict.fromkeys(STATES, 0) | ended | {"reward_failed": trained // 200} | under_way
        if self.status == "cancelled":
            states["cancelled"] = 30
        counts = {"admitted": sum(states.values()), "version": self.steps, "largest_age": BOUND if self.steps else 0}
        return states | counts | {"masked_tokens": self.steps * 40, "sampled_tokens": TOKENS * self.steps}


def _learned(step: int, total: int) -> float:
    return 0.15 + 0.8 * (1 - 0.02 ** (step / total))


def _step(step: int, total: int, time: float, random_numbers: random.Random) -> StepMetrics:
    reward = min(1.0, max(0.0, _learned(step, total) - 0.06 + random_numbers.gauss(0, 0.04)))
    ages, masked = _ages(step, random_numbers)
    seconds = {"wait": 0.6, "batch": 0.05, "train": 0.75, "publish": 0.08, "settle": 0.02}
    return StepMetrics(
        step=step, total_steps=total, time=time, seconds=seconds, reward_mean=reward, reward_std=0.3,
        components={"correct": reward, "format": min(1.0, 0.5 + step / total), "length": 0.2 + 0.1 * reward},
        zero_variance_share=0.2, groups=BATCH, completions=BATCH * GROUP_SIZE, tokens=TOKENS - masked,
        masked_tokens=masked, ages=ages, completion_length=40 + 20 * reward, truncated_share=0.04 * (1 - reward),
        loss=0.01, grad_norm=0.6, learning_rate=1e-4, entropy=1.2 - 0.8 * reward,
        effective_sample_size=0.94 + random_numbers.uniform(-0.02, 0.02), clip_share=0.03, behaviour_kl=0.004,
    )  # fmt: skip


def _ages(step: int, random_numbers: random.Random) -> tuple[dict[str, AgeMetrics], int]:
    """(figures by age, masked tokens). Most tokens are young; for some steps the learner falls behind; occasionally
    some are too old."""
    middle = 0.8 + 1.4 * (step % 90 > 60)
    weights = [random_numbers.uniform(0.7, 1.3) * 2.2 ** -abs(age - middle) for age in range(BOUND + 1)]
    if step % 37 == 0:
        weights += [0.03, 0.05]
    of_all = sum(weights)
    counts = [int(TOKENS * weight / of_all) for weight in weights]
    while len(counts) > 3 and random_numbers.random() < 0.4:
        counts[0] += counts.pop()
    found = {
        str(age): AgeMetrics(n, n if age > BOUND else 0, 0.99 - 0.05 * age, 0.01 + 0.015 * age, 0.002 * age)
        for age, n in enumerate(counts)
    }
    return found, sum(counts[BOUND + 1 :])


def heartbeat(worker: str, **given: Any) -> WorkerMetrics:
    """A heartbeat of `worker`, whose role follows from its name; fields that are not given say nothing."""
    nothing: dict[str, Any] = {"time": 0.0, "version": 0, "uptime": 0.0, "busy": 0.0, "waiting": {}}
    return WorkerMetrics(worker=worker, role="learner" if worker == LEARNER_NAME else "rollout", **nothing | given)
