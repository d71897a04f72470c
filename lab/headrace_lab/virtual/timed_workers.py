"""Real workers with simulated components, whose work only takes virtual time.

    rollout worker   a simulated engine (`simulated_engine`), a reward that takes no time, prompts without text
    learner          training takes time in proportion to its tokens; checkpoints take none

One simulated token stands for `BLOCK` tokens, so that a step's arrays fit in memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np

from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.staleness import ages, contributes
from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.token_selection import AgeCount
from headrace_learner.checkpoints.checkpoint import NewestCheckpoint
from headrace_learner.distributed.process_group import ProcessGroup, SingleProcess
from headrace_learner.distributed.rank_commands import Command, Publish, Save, Train
from headrace_learner.ports import LearnerPorts
from headrace_learner.training.trainer import StepResult
from headrace_learner.worker import LearnerWorker
from headrace_rollout.ports import RolloutPorts
from headrace_rollout.worker import RolloutWorker

from .rollout_parts import InstantReward, NumberedPrompts, no_sandbox
from .simulated_engine import SimulatedEngine
from .simulated_training import step_result
from .virtual_time import LoopClock

BLOCK = 64
FASTER = 20.0
"""All devices are simulated this much faster than specified, and measured times are multiplied by it: an idle worker
polls once a second, which is cheap if steps take seconds, and expensive if they take minutes."""
ROWS = 4096
TRAINING, VALIDATION = "training", "validation"
MAX_RUN_SECONDS = 1e5
"""Seconds of virtual time after which a run counts as stuck."""
T = TypeVar("T")


def rollout_worker(config: WorkerConfig, job: JobRecord, engine: SimulatedEngine, evaluated: int) -> RolloutWorker:
    """A real rollout worker with a simulated engine. `evaluated`: number of validation rows."""
    ports = RolloutPorts(
        job=job,
        engine=cast(Any, engine),
        reward=InstantReward(lambda sample: 1.0),
        weights=WeightStore(Path(config.weights_root), config.job_id),
        prompts=NumberedPrompts({TRAINING: ROWS, VALIDATION: evaluated}.__getitem__),
        sandbox=no_sandbox,
        clock=LoopClock(),
        heartbeat_seconds=MAX_RUN_SECONDS,  # there is no watchdog
    )
    return RolloutWorker(config, ports)


@dataclass(frozen=True, slots=True)
class Settled:
    """One settled step of the learner."""

    at: float
    counts: AgeCount
    train_seconds: float


class TimedTrainer:
    """A trainer that counts tokens and computes how long training on them takes."""

    def __init__(self, trained_per_second: float) -> None:
        self._trained_per_second = trained_per_second
        self.max_staleness = 0
        self.counts = AgeCount()
        self.computed_tokens = 0
        self.train_seconds = 0.0
        """Duration of the last step, for real tokens."""
        self.policy = SimpleNamespace(device="none", parameters=0, write_weights=_write, write_model=_write)

    def apply_settings(self, max_staleness: int, learning_rate: float) -> None:
        """Set `max_staleness` for the next steps."""
        self.max_staleness = max_staleness

    def step(self, groups: Sequence[Group], version: int) -> StepResult:
        """Count the tokens of `groups`, without training."""
        self.train_seconds = sum(g.sampled_tokens for g in groups) * BLOCK / self._trained_per_second
        self.computed_tokens += sum(g.sampled_tokens for g in groups)
        self.counts = age_count(groups, version, self.max_staleness)
        return step_result(self.counts, self.train_seconds)


def _write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "w").touch()


class TimedCoordinator:
    """A `Coordinator` (`headrace_learner.distributed.rank_coordinator`) of one rank, whose training and publishing take
    virtual time."""

    def __init__(self, trainer: TimedTrainer, publish_seconds: float) -> None:
        self.ranks: ProcessGroup = SingleProcess()
        self._trainer, self._publish_seconds, self._clock = trainer, publish_seconds, LoopClock()
        self.steps: list[Settled] = []
        self.settled = asyncio.Event()
        """Wakes all waiters whenever a step is settled (set, and cleared at once)."""

    async def connect(self) -> None: ...

    async def send_heartbeat(self) -> None: ...

    async def finish(self) -> None: ...

    async def close(self) -> None: ...

    async def run_local(self, work: Callable[[], T]) -> T:
        """Run `work` at once."""
        return work()

    async def run_on_all(self, command: Command, work: Callable[[], T]) -> T:
        """Run `work`, then sleep as long as the command takes. A `Save`, which takes no time, follows each settled step
        and records it."""
        done = work()
        if isinstance(command, Train):
            await asyncio.sleep(self._trainer.train_seconds / FASTER)
        elif isinstance(command, Publish):
            await asyncio.sleep(self._publish_seconds / FASTER)
        elif isinstance(command, Save):
            at = self._clock.monotonic() * FASTER
            self.steps.append(Settled(at, self._trainer.counts, self._trainer.train_seconds))
            self.settled.set()
            self.settled.clear()
        return done


class NoCheckpoints:
    """A `CheckpointStore` (`headrace_learner.ports`) that saves nothing."""

    def newest(self, ledger: int) -> NewestCheckpoint:
        return NewestCheckpoint(None, 0, ())

    def save(self, trainer: Any, version: int) -> Path:
        return Path(f"step-{version:08d}")

    def load(self, trainer: Any, path: Path) -> None:
        raise NotImplementedError("there is none to load")


def learner_worker(
    config: WorkerConfig, job: JobRecord, trainer: TimedTrainer, coordinator: TimedCoordinator
) -> LearnerWorker:
    """A real learner, whose training steps are sleeps."""
    ports = LearnerPorts(
        job=job,
        weights=WeightStore(Path(config.weights_root), config.job_id),
        coordinator=coordinator,
        load=lambda ranks: (cast(Any, trainer), None),
        checkpoints=NoCheckpoints(),
        clock=LoopClock(),
        heartbeat_seconds=MAX_RUN_SECONDS,  # there is no watchdog
    )
    return LearnerWorker(config, ports)


def age_count(groups: Sequence[Group], version: int, max_staleness: int) -> AgeCount:
    """Number of tokens by age: contributing ones, and those that are too old."""
    versions = np.concatenate([c.versions for g in groups for c in g.completions])
    old, young = ages(versions, version), contributes(versions, version, max_staleness)
    return AgeCount(Counter(old[young].tolist()), Counter(old[~young].tolist()))
