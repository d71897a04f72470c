"""The protocol between a job's controller and its workers: learner and rollout workers.

A worker runs in a Ray actor, which creates it by the class method `from_config` from a `WorkerConfig`. Its lifecycle:

    start()  loads the model; returns when the worker is ready
    run()    works until the job's ledger is closed or all steps are trained; returns why it ended
    stop()   ends `run` early, releases all resources, leaves no process
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..config.hyperparameters import Hyperparameters
from ..config.reward_permissions import RewardPermissions
from ..redis_access.client import WAIT_SECONDS
from ..redis_address import masked
from ..types.metrics import EvaluationMetrics

LEARNER_NAME = "learner"


def rollout_name(number: int) -> str:
    """The name of a job's rollout worker, counted from 0."""
    return f"rollout-{number}"


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to know. Plain values only: it crosses process borders."""

    job_id: str
    worker: str
    """The worker's name within the job: `LEARNER_NAME`, or a `rollout_name`."""
    redis_url: str
    """May contain a password: mask it in messages."""
    redis_wait: float = WAIT_SECONDS
    """Seconds for which the worker retries while Redis is unreachable or full."""
    weights_root: str
    """Root of the weight store; shared by all workers of the job."""
    snapshots_root: str = ""
    """Folder in each node's memory for snapshots of the learner's state; empty: no snapshots."""
    model_path: str
    training_file: str
    validation_file: str | None
    fingerprints: dict[str, str] = {}
    """SHA-256 of the two files as uploaded, by file name."""
    output_dir: str
    """Where the learner writes checkpoints and the trained model."""
    rows: int
    total_steps: int
    grader: dict[str, Any]
    reward_rules: RewardPermissions = RewardPermissions()
    hyperparameters: dict[str, Any]
    lease_seconds: float = 60.0
    start_timeout: float = 300.0
    update_timeout: float = 240.0
    stall_timeout: float = 600.0
    threads: int = 1
    gpus: float = 0.0
    """GPUs, or the part of one, that the worker was given."""
    rank: int = 0
    """Rank of a learner with several processes: rank 0 talks to the ledger and sends commands to the others."""
    ranks_start: str = ""
    """Identifies one start of all the learner's ranks, so that they do not meet ranks of an earlier start."""

    def __repr__(self) -> str:
        """Masks Redis' password, because a repr may end up in an error message."""
        return f"WorkerConfig(job_id={self.job_id!r}, worker={self.worker!r}, redis_url={masked(self.redis_url)!r})"

    @property
    def settings(self) -> Hyperparameters:
        """The job's hyperparameters, validated."""
        return Hyperparameters.model_validate(self.hyperparameters)


class Worker(Protocol):
    """The methods that the controller calls on any worker."""

    async def start(self) -> dict[str, Any]:
        """Load the model. Returns facts for the event `ready`: engine, device, parameters, …"""
        ...

    async def run(self) -> str:
        """Work until done. Returns `finished`, `closed` or `stopped`; raises errors that it cannot recover from."""
        ...

    async def stop(self) -> None:
        """End `run` and release all resources."""
        ...


class EvaluatingWorker(Worker, Protocol):
    """A rollout worker, which can also evaluate."""

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """Score greedy completions of the validation rows, all sampled by one policy version.

        That is `version`, or the newer one that the worker has by then; the result's `step` says which.
        """
        ...
