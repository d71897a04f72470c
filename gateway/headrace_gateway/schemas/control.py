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
    by: Annotated[str, Field(description="Name of the caller's key.")]
    name: str
    before: float | None
    after: float | None
    from_version: Annotated[int, Field(description="The first policy version to whose update the value applies.")]


class SettingsObject(ResponseModel):
    """A job's settings as they are now, and how they came to be."""

    object: Literal["fine_tuning.job.settings"]
    fine_tuning_job_id: str
    settings: Annotated[dict[str, Any], Field(description="All current settings; see docs/settings.md.")]
    changeable: list[str]
    changes: Annotated[list[ChangeObject], Field(description="All changes, oldest first.")]


class WorkerObject(ResponseModel):
    """One worker of a job, by its last heartbeat."""

    id: str
    object: Literal["fine_tuning.job.worker"]
    role: Literal["learner", "rollout"]
    status: WorkerStatus
    version: Annotated[int, Field(description="Policy version that it samples with, or that the learner has trained.")]
    lag: Annotated[int, Field(description="Number of versions behind the newest.")]
    busy: Annotated[float, Field(description="Seconds of work since its start.")]
    waiting: Annotated[dict[str, float], Field(description="Seconds of waiting, by reason.")]
    running: Annotated[int, Field(description="Number of requests in flight.")]
    tokens: int
    errors: dict[str, int]
    seen_at: Annotated[
        float | None, Field(description="Time of its last heartbeat, Unix seconds; null before the first.")
    ]
    uptime: float


class WorkerList(Page):
    """Every worker of a job."""

    data: list[WorkerObject]


class StageObject(ResponseModel):
    """The groups in one live state of the ledger."""

    stage: LiveState
    depth: int
    oldest_seconds: Annotated[
        float | None, Field(description="Seconds that the oldest group has been in this stage; null if there is none.")
    ]
    oldest_versions: Annotated[
        int | None, Field(description="Largest age that a token of these groups has, or can have.")
    ]


class WindowObject(ResponseModel):
    """The pacing window: a group is admitted only while fewer than `limit` are in progress."""

    used: int
    limit: int


class MemoryObject(ResponseModel):
    """Bytes of encoded groups in Redis."""

    groups: Annotated[int, Field(description="Bytes of all encoded groups.")]
    queued: int
    claimed: int
    kept: Annotated[int, Field(description="Bytes of trained groups, retained until two checkpoints cover the step.")]
    share: Annotated[int | None, Field(description="Maximum bytes of encoded groups; null: no limit.")]
    held_back: Annotated[
        int, Field(description="Number of admissions refused for lack of memory, although the window had capacity.")
    ]
    left_out: Annotated[dict[str, int], Field(description="Number of entries removed from the job's history, by kind.")]


class QueuesObject(ResponseModel):
    """The groups between rollout and learner."""

    object: Literal["fine_tuning.job.queues"]
    fine_tuning_job_id: str
    version: int
    stages: list[StageObject]
    window: WindowObject
    memory: MemoryObject
    stream: Annotated[
        int,
        Field(description="Number of encoded groups: queued ones, and those that two checkpoints do not cover yet."),
    ]
    bytes: Annotated[int, Field(description="Bytes that these groups take in Redis.")]


class PublicationObject(ResponseModel):
    """One policy version that the learner published."""

    version: int
    name: str
    bytes: int
    seconds: Annotated[float, Field(description="Seconds that writing it took.")]
    published_at: Annotated[float, Field(description="Unix seconds.")]


class UpdateObject(ResponseModel):
    """One policy version as a rollout worker took it."""

    version: int
    time: float
    staged_seconds: Annotated[float, Field(description="Seconds of reading and preparing it, during generation.")]
    paused_seconds: Annotated[float, Field(description="Seconds in which no token could be sampled.")]
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
    version: Annotated[int, Field(description="The newest settled policy version.")]
    published: Annotated[list[PublicationObject], Field(description="The last ones, newest first.")]
    workers: list[HolderObject]
