"""The components that a learner is given, and how the real ones are made from its configuration.

A simulation passes others: training that takes virtual time, checkpoints in memory, a virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import torch

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import connect
from headrace_core.storage.weight_store import WeightStore

from .algorithms.presets import algorithm
from .checkpoints import checkpoint
from .checkpoints.checkpoint import NewestCheckpoint
from .checkpoints.memory_snapshot import Snapshots, snapshots_of
from .distributed.process_group import ProcessGroup
from .distributed.rank_coordinator import Coordinator, RankCoordinator
from .models.policy import Policy
from .training.trainer import Trainer

HEARTBEAT_SECONDS = 2.0


class CheckpointStore(Protocol):
    """Writes and finds a job's checkpoints."""

    def newest(self, ledger: int) -> NewestCheckpoint:
        """The newest complete checkpoint that is not newer than `ledger`, the ledger's policy version."""
        ...

    def save(self, trainer: Trainer, version: int) -> Path:
        """Write the trainer's state after `version` steps. Returns the checkpoint's folder. Raises `DiskFull`."""
        ...

    def load(self, trainer: Trainer, path: Path) -> None:
        """Bring the trainer to the state of the checkpoint at `path`."""
        ...


class CheckpointFolder:
    """Checkpoints in a job's output folder (see the module `checkpoint`)."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def newest(self, ledger: int) -> NewestCheckpoint:
        """See `CheckpointStore`."""
        return checkpoint.newest(self._output, ledger)

    def save(self, trainer: Trainer, version: int) -> Path:
        """See `CheckpointStore`."""
        return checkpoint.save(trainer, self._output, version)

    def load(self, trainer: Trainer, path: Path) -> None:
        """See `CheckpointStore`."""
        checkpoint.load(trainer, path)


@dataclass(frozen=True)
class LearnerPorts:
    """The components of a learner, which closes `coordinator` and `job` when it stops."""

    job: JobRecord
    weights: WeightStore
    coordinator: Coordinator
    """Runs everything that needs torch, on all ranks."""
    load: Callable[[ProcessGroup], tuple[Trainer, Snapshots | None]]
    """Loads the model, in torch's thread; the second is None for a job without snapshots."""
    checkpoints: CheckpointStore
    clock: Clock = SYSTEM_CLOCK
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    """Seconds between two heartbeats."""

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """The real components. Nothing is loaded yet."""
        job = JobRecord.on(connect(config.redis_url, config.redis_wait), config.job_id)
        return cls(
            job=job,
            weights=WeightStore(Path(config.weights_root), config.job_id),
            coordinator=RankCoordinator(config, job.redis),
            load=partial(load_trainer, config),
            checkpoints=CheckpointFolder(Path(config.output_dir)),
        )


def load_trainer(config: WorkerConfig, ranks: ProcessGroup) -> tuple[Trainer, Snapshots | None]:
    """One rank's trainer with the job's model loaded, and its snapshots; None for a job without them."""
    settings = config.settings
    torch.manual_seed(settings.seed)
    policy = Policy(Path(config.model_path), settings, ranks)
    trainer = Trainer(policy, algorithm(settings.algorithm), settings)
    return trainer, snapshots_of(trainer, config)
