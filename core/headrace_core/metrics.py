"""What workers measure and the gateway shows: one struct for each kind of entry in a job's metrics stream.

    kind        written by       when
    step        learner          each optimizer step, after it is settled
    evaluation  controller       each evaluation on the validation file
    update      rollout worker   each weight update applied
    worker      every worker     every two seconds

Times are Unix seconds, durations seconds, shares between 0 and 1. Ages are policy versions; as JSON keys they are text.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class AgeMetrics(msgspec.Struct, frozen=True):
    """Tokens of one age in one step; figures but counts are of those computed: groups of equal rewards may not be."""

    tokens: int
    """Sampled tokens of that age, masked ones included."""
    masked: int
    """Left out of the gradient, because they are beyond max_staleness."""
    effective_sample_size: float
    """(Σw)² / (n Σw²) of the staleness weights w = π_prox/π_behaviour: 1 is on-policy."""
    clip_share: float
    """Share of the tokens where the clip around the proximal policy was active."""
    behaviour_kl: float
    """Mean of log π_behaviour − log π_prox over the tokens."""


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step."""

    kind: ClassVar[str] = "step"

    step: int
    """1 for the first; the step makes policy version `step` out of `step` − 1."""
    total_steps: int
    time: float
    seconds: dict[str, float]
    """By stage: `wait` (for groups), `batch`, `train`, `publish`, `settle`, `checkpoint`."""
    reward_mean: float
    reward_std: float
    components: dict[str, float]
    """Mean of each reward component."""
    zero_variance_share: float
    """Share of groups whose completions all have the same reward."""
    groups: int
    completions: int
    tokens: int
    """Completion tokens that contributed to the gradient."""
    masked_tokens: int
    ages: dict[str, AgeMetrics]
    completion_length: float
    truncated_share: float
    """Share of completions that max_tokens cut off."""
    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float
    """Estimated: mean of −log π_prox over the tokens that were computed."""
    effective_sample_size: float
    clip_share: float
    behaviour_kl: float
    extra: dict[str, float] = {}
    """What the algorithm measures beside."""


class EvaluationMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Greedy completions of the validation prompts, scored."""

    kind: ClassVar[str] = "evaluation"

    step: int
    """The policy version that was asked for."""
    time: float
    seconds: float
    samples: int
    reward_mean: float
    """Over the samples whose reward did not fail."""
    components: dict[str, float]
    reward_failed: int
    versions: tuple[int, int]
    """Smallest and largest policy version that sampled a token of it: training does not stop for an evaluation."""
    completion_length: float


class UpdateMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One weight update of one rollout worker."""

    kind: ClassVar[str] = "update"

    worker: str
    time: float
    version: int
    staged_seconds: float
    paused_seconds: float
    requests_in_flight: int


class WorkerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker's time went, since its start."""

    kind: ClassVar[str] = "worker"

    worker: str
    role: str
    """`rollout` or `learner`."""
    time: float
    version: int
    uptime: float
    busy: float
    """Seconds of generating, or of training."""
    waiting: dict[str, float]
    """Seconds by what was waited for: `window` (learner is behind), `groups` (rollout is behind), `weights`, …"""
    tokens: int = 0
    """Sampled, or trained, since its start."""
    groups: int = 0
    running: int = 0
    """Requests in flight."""
    errors: dict[str, int] = {}
    """By kind, since its start."""


Metrics = StepMetrics | EvaluationMetrics | UpdateMetrics | WorkerMetrics
