"""What the routes that look into jobs answer, as models: the OpenAPI document's account of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from headrace_core.types.job import Status

Measured = Literal["step", "evaluation", "update", "worker", "reward"]
"""Kinds of measurements; a test holds them to `headrace_core.jobs.history.MEASURED`."""


class LedgerObject(TypedDict):
    """Where a job's groups are. `admitted` is always the sum of `states`."""

    object: Literal["fine_tuning.job.ledger"]
    fine_tuning_job_id: str
    admitted: int
    states: dict[str, int]
    version: Annotated[int, Field(description="Newest policy version.")]
    masked_tokens: Annotated[int, Field(description="Tokens left out of a gradient because of their age.")]
    largest_age: Annotated[
        int, Field(description="Largest age of a token that contributed to a gradient, in policy versions.")
    ]
    largest_age_bound: Annotated[
        int | None,
        Field(description="`max_staleness` of the step that trained that token; null before the first step."),
    ]
    sampled_tokens: int
    fenced: Annotated[int, Field(description="Number of commits refused because another worker held the lease.")]
    balanced: bool


class GroupLine(TypedDict):
    """One state that a group was in."""

    state: str
    at: Annotated[float, Field(description="Unix seconds.")]
    note: str


class GroupObject(TypedDict):
    """Everything that happened to one group."""

    object: Literal["fine_tuning.job.group"]
    fine_tuning_job_id: str
    group: int
    history: list[GroupLine]


class AgeObject(TypedDict):
    """Tokens of one age in one step; docs/metrics.md, `AgeMetrics`."""

    tokens: int
    masked: int
    effective_sample_size: float
    clip_share: float
    behaviour_kl: float


class StepAges(TypedDict):
    """One step's tokens by age; ages are text, as keys of JSON are."""

    step: int
    time: float
    max_staleness: Annotated[int, Field(description="The bound of this step: it may change while a job runs.")]
    ages: dict[str, AgeObject]


class StalenessObject(TypedDict):
    """How old the tokens are that a job trains on."""

    object: Literal["fine_tuning.job.staleness"]
    fine_tuning_job_id: str
    max_staleness: Annotated[int, Field(description="The current bound; each step has its own.")]
    late: str
    largest_age: int
    largest_age_bound: Annotated[
        int | None,
        Field(description="`max_staleness` of the step that trained that token; null before the first step."),
    ]
    masked_tokens: int
    dropped_groups: int
    steps: Annotated[list[StepAges], Field(description="Oldest first.")]
    has_more: Annotated[
        bool, Field(description="Whether there are later steps; continue with `from_step` = the last step + 1.")
    ]


class RewardSummary(TypedDict):
    """How far a reward can be relied on: docs/rewards.md."""

    groups: int
    completions: int
    not_applicable: int
    sample_parse_errors: int
    failures: dict[str, int]
    left_out: int
    scored_again: dict[str, Any]
    truth: dict[str, Any]
    between: dict[str, Any]
    audit_failed: int
    drift: dict[str, Any]


class _RewardOfJob(TypedDict):
    object: Literal["fine_tuning.job.reward"]
    fine_tuning_job_id: str


@with_config(extra="allow")
class RewardObject(_RewardOfJob, RewardSummary):
    """How far a job's reward can be relied on: docs/rewards.md."""


class MeasurementObject(TypedDict):
    """One entry of a job's measurements: docs/metrics.md."""

    id: Annotated[str, Field(description="Number of the entry in the job's history.")]
    kind: Measured
    data: dict[str, Any]


class MeasurementList(TypedDict):
    """A page of measurements, oldest first."""

    object: Literal["list"]
    data: list[MeasurementObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class SparkObject(TypedDict):
    """At most 40 points each, oldest first, each of as many steps as the others; the last may be of fewer."""

    reward: Annotated[
        list[float], Field(max_length=40, description="Mean rewards; steps without a reward are left out.")
    ]
    age: Annotated[list[float], Field(max_length=40, description="Largest age of a token that contributed.")]


class OverviewError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class OverviewObject(TypedDict):
    """One job in short."""

    id: str
    object: Literal["headrace.overview.job"]
    status: Status
    model: str
    suffix: str | None
    created_at: int
    finished_at: int | None
    step: Annotated[int | None, Field(description="Newest policy version; null if its record is damaged.")]
    total_steps: int
    reward_mean: Annotated[float | None, Field(description="Mean reward of the last step.")]
    evaluation_reward_mean: Annotated[float | None, Field(description="Mean reward of the last evaluation.")]
    max_staleness: int | None
    largest_age: Annotated[int | None, Field(description="Null if the record is damaged.")]
    largest_age_bound: Annotated[
        int | None,
        Field(description="`max_staleness` of the step that trained that token; null before the first step."),
    ]
    spark: SparkObject
    estimated_finish: int | None
    error: OverviewError | None


class OverviewList(TypedDict):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[OverviewObject]
    has_more: bool
    first_id: str | None
    last_id: str | None
