"""What the routes that change a running job answer, and those that show what can be changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from headrace_core.ledger.counts import LiveState

from .base import Page, ResponseModel

WorkerStatus = Literal["starting", "running", "draining", "drained", "lost", "stopped"]


class ChangeObject(ResponseModel):
    """One change of a setting."""

    time: Annotated[float, Field(description="Unix seconds.")]
    by: Annotated[str, Field(description="Name of whoever asked for it.")]
    name: str
    before: float | None
    after: float | None
    from_version: Annotated[int, Field(description="The first policy version whose update it holds for.")]


class SettingsObject(ResponseModel):
    """A job's settings as they are now, and how they came to be."""

    object: Literal["fine_tuning.job.settings"]
    fine_tuning_job_id: str
    settings: Annotated[dict[str, Any], Field(description="Complete: docs/settings.md.")]
    changeable: list[str]
    changes: Annotated[list[ChangeObject], Field(description="Oldest first.")]


class WorkerObject(ResponseModel):
    """One worker of a job, by its last heartbeat."""

    id: str
    object: Literal["fine_tuning.job.worker"]
    role: Literal["learner", "rollout"]
    status: WorkerStatus
    version: Annotated[int, Field(description="Policy version that it samples with, or has trained to.")]
    lag: Annotated[int, Field(description="Versions behind the newest.")]
    busy: Annotated[float, Field(description="Seconds of work since its start.")]
    waiting: Annotated[dict[str, float], Field(description="Seconds, by what was waited for.")]
    running: Annotated[int, Field(description="Requests in flight.")]
    tokens: int
    errors: dict[str, int]
    seen_at: Annotated[float | None, Field(description="Of its last heartbeat, Unix seconds; null before the first.")]
    uptime: float


class WorkerList(Page):
    """Every worker of a job."""

    data: list[WorkerObject]


class StageObject(ResponseModel):
    """The groups in one live state of the ledger."""

    stage: LiveState
    depth: int
    oldest_seconds: Annotated[
        float | None, Field(description="How long the one that is longest in it has been; null for none.")
    ]
    oldest_versions: Annotated[int | None, Field(description="Age of the oldest token that they have, or can have.")]


class WindowObject(ResponseModel):
    """The pacing window: no more than `limit` groups are under way when one is admitted."""

    used: int
    limit: int


class MemoryObject(ResponseModel):
    """Bytes of encoded groups in Redis."""

    groups: Annotated[int, Field(description="All that are kept.")]
    queued: int
    claimed: int
    kept: Annotated[int, Field(description="Trained on, and kept for a replay until two checkpoints hold the step.")]
    share: Annotated[int | None, Field(description="How many there may be; null: any number.")]
    held_back: Annotated[
        int, Field(description="Admissions that gave no group, although the window had room, for want of it.")
    ]
    left_out: Annotated[dict[str, int], Field(description="Number of entries removed from the job's history, by kind.")]


class QueuesObject(ResponseModel):
    """What waits between rollout and learner."""

    object: Literal["fine_tuning.job.queues"]
    fine_tuning_job_id: str
    version: int
    stages: list[StageObject]
    window: WindowObject
    memory: MemoryObject
    stream: Annotated[
        int, Field(description="Encoded groups kept: those queued, and those that no two checkpoints hold yet.")
    ]
    bytes: Annotated[int, Field(description="Memory that they take in Redis.")]


class PublicationObject(ResponseModel):
    """One policy version that the learner published."""

    version: int
    name: str
    bytes: int
    seconds: Annotated[float, Field(description="How long it took to write.")]
    published_at: Annotated[float, Field(description="Unix seconds.")]


class UpdateObject(ResponseModel):
    """One policy version as a rollout worker took it."""

    version: int
    time: float
    staged_seconds: Annotated[float, Field(description="Reading and preparing it, while generation went on.")]
    paused_seconds: Annotated[float, Field(description="No token could be sampled.")]
    requests_in_flight: int


class HolderObject(ResponseModel):
    """A rollout worker and its weights."""

    worker: str
    version: int
    lag: int
    updates: Annotated[list[UpdateObject], Field(description="The last ones, newest first.")]


class WeightsObject(ResponseModel):
    """Policy versions on their way from the learner to the rollout workers."""

    object: Literal["fine_tuning.job.weights"]
    fine_tuning_job_id: str
    version: Annotated[int, Field(description="The newest that is settled.")]
    published: Annotated[list[PublicationObject], Field(description="The last ones, newest first.")]
    workers: list[HolderObject]
