"""What a job's controller tells the workers it places, and what each of the two kinds must answer.

A worker runs in a Ray actor, which makes it by the class method `from_config` of one `WorkerConfig`. Its life:

    start()  loads the model; returns when it is ready
    run()    works until the job's ledger is closed or all steps are trained; returns why it ended
    stop()   ends `run` early, releases what it holds, leaves no process
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
    """Everything a worker needs to find the rest. Plain values only: it crosses process borders."""

    job_id: str
    worker: str
    """Its name within the job: `LEARNER_NAME`, or a `rollout_name`."""
    redis_url: str
    """May hold a password: not for messages."""
    redis_wait: float = WAIT_SECONDS
    """Seconds for which a Redis that is away or full is waited for."""
    weights_root: str
    """Root of the weight store; shared by all workers of the job."""
    snapshots_root: str = ""
    """Memory of each node, where the learner keeps snapshots of its state; empty: it takes none."""
    model_path: str
    training_file: str
    validation_file: str | None
    fingerprints: dict[str, str] = {}
    """SHA-256 of both, by the name of the file, as they were uploaded."""
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
    rank: int = 0
    """Of a learner of several processes: 0 talks to the ledger, the others do what it does."""
    ranks_start: str = ""
    """Names one start of all the learner's ranks, so that they find each other and no rank of an earlier start."""

    def __repr__(self) -> str:
        """Without Redis' password, because it may stand in an error's text."""
        return f"WorkerConfig(job_id={self.job_id!r}, worker={self.worker!r}, redis_url={masked(self.redis_url)!r})"

    @property
    def settings(self) -> Hyperparameters:
        """The job's settings, checked."""
        return Hyperparameters.model_validate(self.hyperparameters)


class Worker(Protocol):
    """What the controller asks of any worker."""

    async def start(self) -> dict[str, Any]:
        """Facts about it, for an event: engine, device, parameters, …"""
        ...

    async def run(self) -> str:
        """Returns `finished`, `closed` or `stopped`; raises what it cannot mend."""
        ...

    async def stop(self) -> None: ...


class EvaluatingWorker(Worker, Protocol):
    """A rollout worker, which can also evaluate."""

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """Greedy completions of the validation rows, all by one policy version: `version`, or the newer one that the
        worker has by then, which the answer names."""
        ...
