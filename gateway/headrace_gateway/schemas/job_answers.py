"""Jobs, their events and checkpoints, as OpenAI's client reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from headrace_core.types.job import Status

from .base import Page, ResponseModel

PauseCode = Literal["worker_failed", "stalled", "nothing_learned", "disk_full", "redis_full"]


class JobFailure(ResponseModel):
    """Why a job failed."""

    code: str
    message: Annotated[str, Field(description="What to change.")]
    param: str | None


class PausedByObject(ResponseModel):
    """Why a job paused by itself."""

    code: PauseCode
    message: Annotated[str, Field(description="What it could not go on without.")]
    time: Annotated[float, Field(description="Unix seconds.")]


class CommonHyperparameters(ResponseModel):
    """Those that OpenAI's jobs of every method have, as they are in force."""

    n_epochs: Annotated[int | None, Field(description="Null where the job has `n_steps`.")]
    batch_size: Annotated[int | None, Field(description="Groups a step.")]
    learning_rate_multiplier: Annotated[float | None, Field(description="Learning rate, by the default one.")]


class ReinforcementObject(ResponseModel):
    """What is rewarded, and how it is trained."""

    grader: Annotated[dict[str, Any], Field(description="Complete, with every default: docs/rewards.md.")]
    hyperparameters: Annotated[dict[str, Any], Field(description="Complete, as in force: docs/settings.md.")]


class MethodObject(ResponseModel):
    """How the job trains."""

    type: Literal["reinforcement"]
    reinforcement: ReinforcementObject


class WandbObject(ResponseModel):
    """A run at Weights & Biases."""

    project: str
    entity: str | None
    name: str | None
    tags: list[str]


class IntegrationObject(ResponseModel):
    """Where a job's measurements are sent as well."""

    type: Literal["wandb"]
    wandb: WandbObject


class ForkedFromObject(ResponseModel):
    """Where a forked job began."""

    fine_tuning_job_id: str
    checkpoint: Annotated[str, Field(description="Its id.")]
    step_number: Annotated[int, Field(description="The other job's step after which it was saved.")]


class JobObject(ResponseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    finished_at: int | None
    model: Annotated[str, Field(description="What is trained, by the name it was asked for.")]
    fine_tuned_model: Annotated[str | None, Field(description="Name of the trained model, once there is one.")]
    organization_id: str
    status: Status
    training_file: str
    validation_file: str | None
    result_files: Annotated[list[str], Field(description="Of an ended job: the file of its steps' figures, as CSV.")]
    seed: int
    trained_tokens: int
    hyperparameters: CommonHyperparameters
    error: JobFailure | None
    paused_by: Annotated[PausedByObject | None, Field(description="Null of a job that its user paused.")]
    estimated_finish: Annotated[int | None, Field(description="Unix seconds; of a running job that has a pace.")]
    integrations: list[IntegrationObject]
    metadata: dict[str, str]
    method: MethodObject
    suffix: str | None
    total_steps: int
    forked_from: ForkedFromObject | None


class JobList(Page):
    """A page of jobs, newest first."""

    data: list[JobObject]


class EventObject(ResponseModel):
    """Something that a job told its user."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Annotated[dict[str, Any] | None, Field(description="Figures of a step or an evaluation, of type `metrics`.")]


class EventList(Page):
    """A page of events, newest first."""

    data: list[EventObject]


class CheckpointObject(ResponseModel):
    """A saved state from which the job can go on, and a model that can be used."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    fine_tuned_model_checkpoint: Annotated[str, Field(description="Name of its model.")]
    fine_tuning_job_id: str
    step_number: int
    metrics: Annotated[dict[str, float | None], Field(description="`step`, and what was measured at it.")]


class CheckpointList(Page):
    """A page of checkpoints, newest first."""

    data: list[CheckpointObject]
