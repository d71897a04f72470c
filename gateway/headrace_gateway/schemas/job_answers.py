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
    message: Annotated[str, Field(description="Explanation for people: what to change.")]
    param: str | None


class PausedByObject(ResponseModel):
    """Why a job paused by itself."""

    code: PauseCode
    message: Annotated[str, Field(description="The reason why the job could not continue.")]
    time: Annotated[float, Field(description="Unix seconds.")]


class CommonHyperparameters(ResponseModel):
    """Those that OpenAI's jobs of every method have, as they are in force."""

    n_epochs: Annotated[int | None, Field(description="Null if the job has `n_steps`.")]
    batch_size: Annotated[int | None, Field(description="Groups of a step.")]
    learning_rate_multiplier: Annotated[float | None, Field(description="Learning rate divided by the default one.")]


class ReinforcementObject(ResponseModel):
    """What is rewarded, and how it is trained."""

    grader: Annotated[dict[str, Any], Field(description="The grader with all its defaults; see docs/rewards.md.")]
    hyperparameters: Annotated[dict[str, Any], Field(description="All current settings; see docs/settings.md.")]


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
    """A service to which a job's measurements are exported."""

    type: Literal["wandb"]
    wandb: WandbObject


class ForkedFromObject(ResponseModel):
    """The checkpoint that a forked job started from."""

    fine_tuning_job_id: str
    checkpoint: Annotated[str, Field(description="Id of the checkpoint.")]
    step_number: Annotated[int, Field(description="The step of the original job after which it was saved.")]


class DeviceMemoryObject(ResponseModel):
    """What each of some devices holds, in bytes."""

    processes: Annotated[str, Field(description="Who shares the device.")]
    devices: Annotated[int, Field(description="How many devices are filled alike.")]
    parts: Annotated[dict[str, int], Field(description='By "process: part".')]
    total: int
    usable: int


class MemoryPlanObject(ResponseModel):
    """The job's memory as it was computed at submission; nothing of it is measured."""

    parameters: Annotated[int, Field(description="Numbers of the model; tied ones count once.")]
    trained: Annotated[int, Field(description="Numbers that the policy's optimizer changes.")]
    gpu: bool
    devices: list[DeviceMemoryObject]
    kv_cache_tokens: Annotated[int, Field(description="Of one rollout worker.")]
    host: Annotated[dict[str, int], Field(description="Bytes of shared memory, at most.")]
    chosen: Annotated[dict[str, Any], Field(description="Defaults that were replaced so that the job fits.")]


class JobObject(ResponseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    finished_at: int | None
    model: Annotated[str, Field(description="Name of the base model, as in the request.")]
    fine_tuned_model: Annotated[str | None, Field(description="Name of the trained model; null before there is one.")]
    organization_id: str
    status: Status
    training_file: str
    validation_file: str | None
    result_files: Annotated[
        list[str], Field(description="Id of the CSV file with the figures of all steps, after the job has ended.")
    ]
    seed: int
    trained_tokens: int
    hyperparameters: CommonHyperparameters
    error: JobFailure | None
    paused_by: Annotated[
        PausedByObject | None, Field(description="Why the job paused by itself; null if a user paused it.")
    ]
    estimated_finish: Annotated[
        int | None, Field(description="Unix seconds; null unless the job runs and its pace is known.")
    ]
    integrations: list[IntegrationObject]
    metadata: dict[str, str]
    method: MethodObject
    suffix: str | None
    total_steps: int
    forked_from: ForkedFromObject | None
    memory_plan: Annotated[
        MemoryPlanObject | None, Field(description="Null where the model or the devices are not known.")
    ]


class JobList(Page):
    """A page of jobs, newest first."""

    data: list[JobObject]


class EventObject(ResponseModel):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Annotated[dict[str, Any] | None, Field(description="Figures of a step or an evaluation, for type `metrics`.")]


class EventList(Page):
    """A page of events, newest first."""

    data: list[EventObject]


class CheckpointObject(ResponseModel):
    """A saved state from which the job can continue, with a usable model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: Annotated[int, Field(description="Unix seconds.")]
    fine_tuned_model_checkpoint: Annotated[str, Field(description="Name of the checkpoint's model.")]
    fine_tuning_job_id: str
    step_number: int
    metrics: Annotated[dict[str, float | None], Field(description="`step`, and the measurements at that step.")]


class CheckpointList(Page):
    """A page of checkpoints, newest first."""

    data: list[CheckpointObject]
