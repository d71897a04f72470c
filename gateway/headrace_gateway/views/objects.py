"""Jobs, events, checkpoints, files and models as OpenAI's client reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from headrace_core.config.learning_settings import BASE_LEARNING_RATE
from headrace_core.types.job import Checkpoint, Event, Job, PausedBy

from ..files.file_store import StoredFile
from ..files.result_files import result_files
from ..models.catalog import Model
from ..schemas.files import FileObject
from ..schemas.job_answers import (
    CheckpointObject,
    CommonHyperparameters,
    EventObject,
    JobFailure,
    JobObject,
    MemoryPlanObject,
    PauseCode,
    PausedByObject,
)
from ..schemas.service import ModelObject

ORGANIZATION = "headrace"


def job_object(job: Job, estimated_finish: float | None = None) -> JobObject:
    """A job as OpenAI's client reads it."""
    settings, origin = job.hyperparameters, job.forked_from
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
        "error": failure_object(job),
        "paused_by": _paused_by_object(job.paused_by),
        "estimated_finish": None if estimated_finish is None else int(estimated_finish),
        "integrations": [{"type": "wandb", "wandb": each["wandb"]} for each in job.integrations],
        "metadata": job.metadata,
        "method": {"type": "reinforcement", "reinforcement": {"grader": job.grader, "hyperparameters": settings}},
        "suffix": job.suffix,
        "total_steps": job.total_steps,
        "forked_from": None
        if origin is None
        else {
            "fine_tuning_job_id": origin.fine_tuning_job_id,
            "checkpoint": origin.checkpoint,
            "step_number": origin.step_number,
        },
        "memory_plan": cast(MemoryPlanObject | None, job.memory_plan),
    }


def _paused_by_object(paused: PausedBy | None) -> PausedByObject | None:
    if paused is None:
        return None
    return {"code": cast(PauseCode, paused.code), "message": paused.message, "time": paused.time}


def failure_object(job: Job) -> JobFailure | None:
    """Why a job failed; None of one that did not."""
    error = job.error
    return None if error is None else {"code": error.code, "message": error.message, "param": error.param}


def _of_all_methods(settings: Mapping[str, Any]) -> CommonHyperparameters:
    """The hyperparameters that OpenAI's jobs of every method have."""
    rate = settings.get("learning_rate")
    return {
        "n_epochs": settings.get("n_epochs"),
        "batch_size": settings.get("batch_size"),
        "learning_rate_multiplier": None if rate is None else rate / BASE_LEARNING_RATE,
    }


def event_object(event: Event) -> EventObject:
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


def checkpoint_object(job_id: str, checkpoint: Checkpoint) -> CheckpointObject:
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


def file_object(file: StoredFile) -> FileObject:
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


def model_object(model: Model) -> ModelObject:
    """A model as OpenAI's client reads it; `path` is ours: the folder on the server."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at),
        "owned_by": model.owner,
        "path": str(model.path),
    }
