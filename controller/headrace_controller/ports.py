"""The dependencies that a job's controller is given: their interfaces and their real implementations.

The simulation passes others: workers that are no processes, files that a dead controller cannot remove, a virtual
clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_record import JobRecord
from headrace_core.redis_access.client import connect
from headrace_core.storage import snapshot_folder
from headrace_core.storage.job_folder import JobFolder, remove_partials
from headrace_core.storage.weight_store import WeightStore, default_root
from headrace_core.types.job import Job

from .idle_steps import IdleSteps
from .memory_share import MemoryShare
from .placement import RayCluster
from .workers.group import WorkerGroup
from .workers.supervisor import WorkerSupervisor
from .workers.training import train

WATCH_SECONDS = 1.0


class JobFiles(Protocol):
    """The files that a job's workers leave in shared memory and on this machine's disk."""

    def remove_weights(self) -> None:
        """Remove the job's published weights; the learner publishes them again when the job continues. Idempotent."""
        ...

    def remove_resumable_state(self) -> None:
        """Remove snapshots and incomplete files, which only a job that continues can use. Idempotent."""
        ...


class StoredFiles:
    """`JobFiles` in the weight store at `weights`, the snapshot folder at `snapshots`, the job's folder `output`."""

    def __init__(self, job_id: str, weights: Path, snapshots: Path, output: Path) -> None:
        self._job_id, self._snapshots, self._output = job_id, snapshots, output
        self._weights = WeightStore(weights, job_id)

    def remove_weights(self) -> None:
        """See `JobFiles`."""
        self._weights.remove()

    def remove_resumable_state(self) -> None:
        """See `JobFiles`."""
        snapshot_folder.remove(self._snapshots, self._job_id)
        remove_partials(self._output)


class IdleWatch(Protocol):
    """Watches for steps that leave the policy unchanged (`IdleSteps`)."""

    async def check(self) -> None:
        """Count the steps since the last call. Raises `NothingLearned`."""
        ...

    async def end(self) -> None:
        """Called when all steps are done. Raises `NothingScored`."""
        ...


@dataclass(frozen=True)
class ControllerPorts:
    """The dependencies of one job's controller."""

    job: JobRecord
    workers: WorkerGroup
    files: JobFiles
    train: Callable[[Job, Sequence[WorkerSupervisor]], Awaitable[None]]
    """Runs the training with workers that are placed; returns when all steps are done."""
    keep_memory_share: Callable[[], Awaitable[None]]
    """Limits the job to its share of Redis' memory; never returns."""
    idle_steps: Callable[[Job], Awaitable[IdleWatch]]
    """Makes the watch for steps that leave the policy unchanged."""
    clock: Clock = SYSTEM_CLOCK
    watch_seconds: float = WATCH_SECONDS
    """Interval between two polls of the job's status and progress."""

    @classmethod
    def from_config(cls, settings: Settings, redis_url: str, job_id: str) -> Self:
        """The real implementations."""
        job = JobRecord.on(connect(redis_url, settings.redis_wait), job_id)
        weights, memory = settings.weights_dir or default_root(), settings.snapshots_dir or default_root()
        return cls(
            job=job,
            workers=WorkerGroup(settings, redis_url, job, RayCluster(), weights, memory),
            files=StoredFiles(job_id, weights, memory, JobFolder.of(settings.data_dir, job_id).path),
            train=partial(train, job),
            keep_memory_share=MemoryShare(job.redis, job.store, settings, job_id).run_forever,
            idle_steps=partial(IdleSteps.at_current_version, job),
        )
