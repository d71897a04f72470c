"""A simulated cluster around the real scheduler, in virtual time.

    real       ledger and its Lua scripts on a redis-server · staleness.select · RolloutWorker (admission, weights in
               flight, leases) and GroupMaker · LearnerWorker (claims, settlement) · the weight store and its folders
    simulated  engines (`simulated_engine`) · training, which takes time in proportion to its tokens · rewards and
               checkpoints, which take none

A length of one simulated token stands for `BLOCK` tokens, so that a step's arrays fit in memory.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from headrace_core.activity_timer import ActivityTimer
from headrace_core.concurrency import cancel
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.protocols.grader_check import Outcome, Score
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.dataset import Row
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.staleness import ages, contributes
from headrace_core.types.trajectory import Group
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.simulated_engine import DecodeSpeed, Lengths, SimulatedEngine
from headrace_lab.virtual_time import InlineRedis, run
from headrace_learner.algorithms.token_selection import AgeCount
from headrace_learner.worker import LearnerWorker
from headrace_rewards.protocol import Sample
from headrace_rollout.completion_sampler import CompletionSampler
from headrace_rollout.evaluation import Evaluator
from headrace_rollout.group_builder import GroupBuilder
from headrace_rollout.prompts import Prompt
from headrace_rollout.weight_sync import WeightSync
from headrace_rollout.worker import RolloutWorker
from headrace_rollout.worker_reporter import WorkerReporter

BLOCK = 64
FASTER = 20.0
"""All devices are so much faster than told, and times are told back multiplied: a worker with nothing to do looks round
once a second, which is often beside steps of a few seconds and wasteful beside steps of minutes."""
ROWS = 4096
LONGEST_RUN = 1e5
"""Seconds of virtual time after which a run that has not ended is stuck."""


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


class Tokenizer:
    """There is no text."""

    def text(self, token_ids: npt.NDArray[np.int32]) -> str:
        return ""


class InstantReward:
    """Takes no time."""

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Score(1.0) for _ in samples]

    async def close(self) -> None: ...


class VirtualRolloutWorker(RolloutWorker):
    """The real one around a simulated engine, its start-up left out."""

    def __init__(
        self, config: WorkerConfig, redis: InlineRedis, engine: SimulatedEngine, prompts: list[Prompt]
    ) -> None:
        super().__init__(config)
        clock = asyncio.get_running_loop().time
        self._redis, self._engine = cast(Any, redis), cast(Any, engine)
        self._ledger, self._jobs = Ledger(self._redis, config.job_id, clock), JobStore(self._redis)
        self._live, self._drains = (
            SettingsLog(self._redis, config.job_id, self._settings),
            WorkerDrains(self._redis, config.job_id),
        )
        mending = RecoveryCounters(self._redis, config.job_id)
        self._telling = WorkerReporter(self._jobs, mending, config.job_id, config.worker)
        weights = WeightStore(Path(config.weights_root), config.job_id)
        self._follower = WeightSync(cast(Any, engine), self._ledger, weights, self._telling, config.start_timeout)
        self._split = ActivityTimer("window", clock)
        tokenizer, reward = cast(Any, Tokenizer()), cast(Any, InstantReward())
        self._maker = GroupBuilder(
            self._engine, tokenizer, reward, prompts, self._settings, self._wake.set, self._grader
        )

    def evaluator(self, held_out: list[Prompt]) -> Evaluator:
        """The real one, on this engine, of these rows."""
        engine, tokenizer, s = self._engine, cast(Any, Tokenizer()), self._settings
        measurer = CompletionSampler(engine, tokenizer, self._grader, s, held_out, evaluating=True)
        limits = {"max_tokens": s.max_tokens, "at_once": s.max_running}
        return Evaluator(self._follower, measurer, tokenizer, InstantReward(), held_out, **limits)

    async def _beat(self) -> None:
        """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One step of the simulated learner."""

    at: float
    counts: AgeCount
    train_seconds: float


class VirtualLearner(LearnerWorker):
    """The real one's batches and settlements; a step of training is a sleep."""

    def __init__(self, config: WorkerConfig, redis: InlineRedis, cluster: Cluster) -> None:
        super().__init__(config)
        self._clock = asyncio.get_running_loop().time
        self._redis, self._cluster = cast(Any, redis), cluster
        self._ledger, self._jobs = Ledger(self._redis, config.job_id, self._clock), JobStore(self._redis)
        self._live, self._drains = (
            SettingsLog(self._redis, config.job_id, self._settings),
            WorkerDrains(self._redis, config.job_id),
        )
        self._split = ActivityTimer("groups", self._clock)
        self.steps: list[Settled] = []
        self.settled = asyncio.Event()
        """Set for a moment whenever a step is."""

    async def open(self) -> None:
        """Begin the job and the term."""
        await self._ledger.open(self._settings.limits(self._config.rows))
        self._term = await self._ledger.enlist()

    async def close(self) -> None:
        """End the job; the rollout workers hear of it."""
        await self._ledger.close("finished")

    async def run(self) -> str:
        """The work alone: nobody listens to heartbeats, and there are no ranks to dismiss."""
        return await self._work()

    async def _step(self) -> None:
        groups = await self._next_batch()
        tokens = sum(g.sampled_tokens for g in groups) * BLOCK
        train_seconds = tokens / self._cluster.trained_per_second
        counts = age_count(groups, self._version, self._settings.max_staleness)
        await asyncio.sleep((train_seconds + self._cluster.publish_seconds) / FASTER)
        weights = self._weights.publish(self._version + 1, self._term.number, lambda folder: (folder / "w").touch())
        await self._settle(groups, cast(Any, SimpleNamespace(counts=counts)), weights.name)
        await self._ledger.covered(self._version)
        self.steps.append(Settled(self._clock() * FASTER, counts, train_seconds))
        self.settled.set()
        self.settled.clear()

    async def _save(self, metrics: dict[str, float]) -> None:
        """There is nothing to save."""

    async def _finish(self) -> None:
        """There is no model."""


def age_count(groups: Sequence[Group], version: int, max_staleness: int) -> AgeCount:
    """Tokens by age, those that contribute and those beyond the bound."""
    versions = np.concatenate([c.versions for g in groups for c in g.completions])
    old, young = ages(versions, version), contributes(versions, version, max_staleness)
    return AgeCount(Counter(old[young].tolist()), Counter(old[~young].tolist()))


@dataclass(frozen=True, slots=True)
class Evaluations:
    """On the first rollout device, as in a job."""

    rows: int
    every: int
    """Steps."""

    async def run(self, worker: VirtualRolloutWorker, learner: VirtualLearner) -> None:
        """One after the other until cancelled; of the newest version, where an evaluation outlasts the interval."""
        evaluator = worker.evaluator([Prompt(row, np.array([row], np.int32), Row([], {})) for row in range(self.rows)])
        version = 0
        while True:
            while len(learner.steps) < version + self.every:
                await learner.settled.wait()
            version = len(learner.steps) // self.every * self.every
            await evaluator.evaluate(version, LONGEST_RUN)


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
    blocks = -(-cluster.lengths.table(ROWS, cluster.group_size) // BLOCK)
    s = cluster.speed
    speed = DecodeSpeed(s.base * BLOCK / FASTER, s.each * BLOCK / FASTER, s.update_pause / FASTER)
    engines = [SimulatedEngine(speed, blocks) for _ in range(cluster.rollout_devices)]
    config = _config(cluster, max_staleness, warm + steps, redis_url, folder)
    prompts = [Prompt(row, np.array([row], np.int32), Row([], {})) for row in range(ROWS)]
    workers = [VirtualRolloutWorker(config(f"rollout-{i}"), redis, e, prompts) for i, e in enumerate(engines)]
    learner = VirtualLearner(config("learner"), redis, cluster)
    await learner.open()
    try:
        async with asyncio.timeout(LONGEST_RUN), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.run())
            beside = [] if evaluations is None else [tasks.create_task(evaluations.run(workers[0], learner))]
            await learner.run()
            await cancel(beside)
            await learner.close()
    finally:
        await redis.aclose()
    return _throughput(max_staleness, learner.steps, warm, engines)


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
    }
    grader = {"type": "string_check", "name": "none", "input": "", "reference": "", "operation": "eq"}

    def config(worker: str) -> WorkerConfig:
        return WorkerConfig(
            job_id="ftjob-cluster",
            worker=worker,
            redis_url=redis_url,
            weights_root=folder,
            model_path=folder,
            training_file="",
            validation_file=None,
            output_dir=folder,
            rows=ROWS,
            total_steps=steps,
            grader=grader,
            hyperparameters=hyperparameters,
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
