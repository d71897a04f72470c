"""The records of a job: its request and state, its events and checkpoints, and the names of its models."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

import msgspec

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
CHECKPOINT_MODEL = "model"
"""Subfolder of a checkpoint with the model in Hugging Face format."""
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class PausedBy(msgspec.Struct, frozen=True):
    """Why a job paused by itself; a resume continues from there."""

    code: str
    """`worker_failed`, `stalled`, `nothing_learned`, `disk_full` or `redis_full`."""
    message: str
    time: float
    """Unix seconds."""


class ForkedFrom(msgspec.Struct, frozen=True):
    """The checkpoint whose model a job started from."""

    fine_tuning_job_id: str
    checkpoint: str
    step_number: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One RL job: the request, and its state."""

    id: str
    created_at: float
    model: str
    """As the user named it."""
    model_path: str
    """The folder of that model."""
    training_file: str
    validation_file: str | None = None
    fingerprints: dict[str, str] = {}
    """SHA-256 of the two files as uploaded, by file id."""
    suffix: str | None = None
    seed: int = 0
    metadata: dict[str, str] = {}
    integrations: list[dict[str, Any]] = []
    """Other services that the job's measurements are sent to, as in the request: `{"type": "wandb", "wandb": {…}}`."""
    grader: dict[str, Any] = {}
    hyperparameters: dict[str, Any] = {}
    """Complete: every default filled in, and changes made while the job runs included."""
    rows: int = 0
    total_steps: int = 0
    forked_from: ForkedFrom | None = None
    memory_plan: dict[str, Any] | None = None
    """`headrace_core.planning.memory_plan.MemoryPlan`, of the submission; None where there is none for the model or the
    devices."""
    owner: str = "local"
    """Name of the owner; never changes. Also stored as a field of its own, which can be read without the document."""

    # stored as fields beside the document, because they change
    status: Status = "validating_files"
    finished_at: float | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int = 0
    error: JobError | None = None
    paused_by: PausedBy | None = None
    """None if the job is not paused, or a user paused it."""
    pace: tuple[tuple[int, float], ...] = ()
    """(step, Unix seconds when it was recorded) of the last steps."""
    at_rest: bool = False
    """Whether the job has actually stopped, as its status (ended or paused) says: no process of it runs any more."""


class Event(msgspec.Struct, frozen=True):
    """A message to the user. Its id contains the job's and its number in the job's history. `data` of a metrics event:
    docs/metrics.md."""

    id: str
    created_at: float
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


def event_id(job_id: str, number: int) -> str:
    """`ftevent-<job>-<number>`."""
    return f"ftevent-{job_id.removeprefix('ftjob-')}-{number}"


class Checkpoint(msgspec.Struct, frozen=True):
    """A saved state from which the job can continue, with the model at that step."""

    id: str
    created_at: float
    step: int
    model: str
    """Name under which the checkpoint's model is offered."""
    path: str
    """The checkpoint's folder; its contents are the learner's business."""
    metrics: dict[str, float] = {}

    @property
    def model_path(self) -> Path:
        """The checkpoint's model folder, in Hugging Face format."""
        return Path(self.path) / CHECKPOINT_MODEL


def model_name(job: Job, step: int | None = None) -> str:
    """Name of a trained model: of the job's final one (`step` None), or of the checkpoint after `step`."""
    name = f"ft:{job.model}:headrace:{job.suffix or ''}:{job.id.removeprefix('ftjob-')}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def new_id(prefix: str) -> str:
    """`prefix` followed by 24 random hexadecimal digits."""
    return prefix + uuid.uuid4().hex[:24]
