"""The bodies of OpenAI's fine-tuning surface: what is taken, and how what is stored looks to the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from headrace_core.config.hyperparameters import BASE_LEARNING_RATE, Hyperparameters
from headrace_core.jobs.job_store import Checkpoint, Event, Job

from ..files.file_store import StoredFile
from ..files.result_files import result_files
from ..models.catalog import Model
from .chat import TextFormat

ORGANIZATION = "headrace"

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Reference = Annotated[str, StringConstraints(max_length=4096)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Reinforcement(BaseModel):
    """`method.reinforcement`: what is rewarded, and how it is trained."""

    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]
    hyperparameters: Hyperparameters = Field(default_factory=lambda: Hyperparameters.model_validate({}))
    response_format: TextFormat | None = None

    @field_validator("response_format", mode="before")
    @classmethod
    def _is_text(cls, asked: Any) -> Any:
        if isinstance(asked, dict) and str(asked.get("type")).startswith("json_"):
            raise ValueError("completions are sampled as plain text: have the reward look at their form")
        return asked


class Method(BaseModel):
    """`method`: reinforcement is the only type."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["reinforcement"]
    reinforcement: Reinforcement


class Wandb(BaseModel):
    """A run at Weights & Biases; the job's id is its name where none is given."""

    model_config = ConfigDict(extra="forbid")

    project: _Name
    entity: _Name | None = None
    name: _Name | None = None
    tags: list[_Name] = Field(default_factory=list, max_length=50)


class Integration(BaseModel):
    """Where a job's measurements are sent as well."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(BaseModel):
    """The body of POST /v1/fine_tuning/jobs."""

    model_config = ConfigDict(extra="forbid")

    model: Reference
    training_file: Reference
    method: Method
    validation_file: Reference | None = None
    suffix: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int | None = Field(None, ge=0, le=2**32 - 1)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    integrations: list[Integration] | None = Field(None, max_length=1)


def job_object(job: Job, estimated_finish: float | None = None) -> dict[str, Any]:
    """A job as OpenAI's client reads it."""
    settings = job.hyperparameters
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": ORGANIZATION,
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": result_files(job),
        "seed": job.seed,
        "trained_tokens": job.trained_tokens,
        "hyperparameters": _of_all_methods(settings),
        "error": None if job.error is None else {k: getattr(job.error, k) for k in ("code", "message", "param")},
        "paused_by": None if job.paused_by is None else msgspec.structs.asdict(job.paused_by),
        "estimated_finish": None if estimated_finish is None else int(estimated_finish),
        "integrations": job.integrations,
        "metadata": job.metadata,
        "method": {"type": "reinforcement", "reinforcement": {"grader": job.grader, "hyperparameters": settings}},
        "suffix": job.suffix,
        "total_steps": job.total_steps,
        "forked_from": None if job.forked_from is None else msgspec.structs.asdict(job.forked_from),
    }


def _of_all_methods(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that OpenAI's jobs of every method have."""
    rate = settings.get("learning_rate")
    return {
        "n_epochs": settings.get("n_epochs"),
        "batch_size": settings.get("batch_size"),
        "learning_rate_multiplier": None if rate is None else rate / BASE_LEARNING_RATE,
    }


def event_object(event: Event) -> dict[str, Any]:
    """An event as OpenAI's client reads it."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_object(job_id: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as OpenAI's client reads it."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created_at),
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": job_id,
        "step_number": checkpoint.step,
        "metrics": {"step": checkpoint.step, **checkpoint.metrics},
    }


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's client reads it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


def model_object(model: Model) -> dict[str, Any]:
    """A model as OpenAI's client reads it; `path` is ours: the folder on the server."""
    known = {"id": model.name, "object": "model", "created": int(model.created_at), "owned_by": model.owner}
    return known | {"path": str(model.path)}
