"""A job's measurements, as workers record and the gateway shows them: one struct for each kind.

    kind        written by       when
    step        learner          each optimizer step, after it is settled
    evaluation  controller       each evaluation on the validation file
    update      rollout worker   each weight update applied
    worker      every worker     every two seconds
    reward      rollout worker   every few seconds in which it scored something

Times are Unix seconds, durations seconds, shares between 0 and 1. Ages are policy versions; as JSON keys they are text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import msgspec


class AgeMetrics(msgspec.Struct, frozen=True):
    """The tokens of one age in one step. All figures but the counts are over the tokens that the learner computed,
    which may exclude groups of equal rewards."""

    tokens: int
    """Tokens of completions and reference answers of that age, masked ones included."""
    masked: int
    """Tokens of them left out of the gradient, because they are older than max_staleness."""
    effective_sample_size: float
    """(Σw)² / (n Σw²) of the staleness weights w = π_prox/π_behaviour; 1 if all weights are equal, as on-policy."""
    clip_share: float
    """Share of the tokens where the clip around the proximal policy was active."""
    behaviour_kl: float
    """Mean of log π_behaviour − log π_prox over the tokens."""


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step."""

    kind: ClassVar[str] = "step"

    step: int
    """Number of the step, from 1; it turns policy version `step` − 1 into version `step`."""
    total_steps: int
    time: float
    seconds: dict[str, float]
    """Duration of each stage since the previous step was recorded: `wait` (for groups), `batch`, `train`, `publish`,
    `settle`, and the previous step's `snapshot` (the time that the learner waited for it) and `checkpoint`."""
    reward_mean: float | None
    """Mean reward of the step's completions, masked ones included; none if no completion has a reward."""
    reward_std: float | None
    components: dict[str, float]
    """Mean of each reward component."""
    zero_variance_share: float | None
    """Share of groups whose rewards are all equal, among those with at least two rewards; none without such a group."""
    groups: int
    completions: int
    tokens: int
    """Tokens of completions and reference answers that contributed to the gradient."""
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
    """Further figures of the algorithm."""


class EvaluationMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Greedy completions of the validation prompts, scored."""

    kind: ClassVar[str] = "evaluation"

    step: int
    """The policy version that was evaluated: its weights sampled every token."""
    time: float
    seconds: float
    samples: int
    reward_mean: float | None
    """Mean reward of the samples that were scored; none if no sample was scored, which is not a reward of zero."""
    components: dict[str, float]
    reward_failed: int
    failures: dict[str, int] = {}
    """Failed rewards by kind (docs/rewards.md)."""
    not_applicable: int = 0
    """Samples that the reward does not apply to."""
    sample_parse_errors: int = 0
    """Samples scored 0, in whole or in part, because they lack what the grader reads in them: JSON, or a key of it."""
    generation_failed: int = 0
    """Samples whose row the engine cannot serve. They have no completion, and the other figures exclude them."""
    left_out: tuple[int, ...] = ()
    """Earlier steps whose evaluation was due but skipped, because the job was past them: an evaluation took longer than
    `eval_interval` steps, or a worker or controller died during it and came back later."""
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


WorkerState = Literal["starting", "running", "draining", "drained"]


class WorkerMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat: its state, and how it spent its time since its start."""

    kind: ClassVar[str] = "worker"

    worker: str
    role: str
    """`rollout` or `learner`."""
    state: WorkerState = "running"
    time: float
    version: int
    uptime: float
    busy: float
    """Seconds spent generating, or training."""
    waiting: dict[str, float]
    """Seconds spent waiting, by reason: `window` (the learner is behind), `groups` (rollout is behind), `drained`, …"""
    tokens: int = 0
    """Tokens sampled, or trained, since its start."""
    computed_tokens: int = 0
    """Tokens that its engine sampled, or its micro-batches computed in all their passes, since its start; unlike
    `tokens`, counted while a group or a step is in progress."""
    groups: int = 0
    running: int = 0
    """Requests in flight."""
    evaluation: tuple[int, int] | None = None
    """The evaluation that began last: its policy version, and the number of its completions sampled so far."""
    errors: dict[str, int] = {}
    """Number of errors by kind, since its start."""


def furthest_evaluation(heartbeats: Iterable[WorkerMetrics]) -> tuple[int, int]:
    """(policy version, completions sampled) of the most advanced evaluation; (-1, 0) if none was begun."""
    return max((each.evaluation for each in heartbeats if each.evaluation is not None), default=(-1, 0))


class Tally(msgspec.Struct, frozen=True):
    """Sums over groups of a figure of their completions: a group has n completions, and x is the sum of their figures.

    Two tallies can be added. The completions of a group are correlated, because they share its prompt, so that the sums
    of squares are over groups: `reward_statistics` makes confidence intervals from them.
    """

    groups: int = 0
    """Number of groups with n > 0."""
    count: int = 0
    """Σn."""
    total: float = 0.0
    """Σx; for a share, the number of completions that have the property."""
    squares: float = 0.0
    """Σx²."""
    products: float = 0.0
    """Σxn."""
    count_squares: int = 0
    """Σn²."""

    def with_group(self, values: Iterable[float]) -> Tally:
        """This tally with one more group, whose completions have these values."""
        each = list(values)
        n, x = len(each), float(sum(each))
        return self if n == 0 else self + Tally(1, n, x, x * x, x * n, n * n)

    def __add__(self, other: Tally) -> Tally:
        sums = (getattr(self, name) + getattr(other, name) for name in Tally.__struct_fields__)
        return Tally(*sums)


class Pairs(msgspec.Struct, frozen=True):
    """Completions that were scored twice."""

    equal: Tally = Tally()
    """Whether the two scores are equal."""
    difference: Tally = Tally()
    """|second − first|."""
    shift: Tally = Tally()
    """Second − first."""

    def with_group(self, first: Sequence[float], second: Sequence[float]) -> Pairs:
        """These pairs with those of one more group."""
        shifts = [b - a for a, b in zip(first, second, strict=True)]
        return Pairs(
            self.equal.with_group(d == 0 for d in shifts),
            self.difference.with_group(map(abs, shifts)),
            self.shift.with_group(shifts),
        )

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.equal + other.equal, self.difference + other.difference, self.shift + other.shift)


class Flips(msgspec.Struct, frozen=True):
    """A reward compared with one that counts as the truth, each low or high (below its threshold, or not)."""

    up: Tally = Tally()
    """Share of the truly low completions that the reward calls high."""
    down: Tally = Tally()
    """Share of the truly high completions that the reward calls low."""
    disagree: Tally = Tally()
    """Share of all completions on which the two disagree."""

    def with_group(self, high: Sequence[bool], truly_high: Sequence[bool]) -> Flips:
        """These flips with those of one more group: whether the reward, and the truth, is high for each completion."""
        pairs = list(zip(high, truly_high, strict=True))
        return Flips(
            self.up.with_group(reward for reward, truth in pairs if not truth),
            self.down.with_group(not reward for reward, truth in pairs if truth),
            self.disagree.with_group(reward != truth for reward, truth in pairs),
        )

    def __add__(self, other: Flips) -> Flips:
        return Flips(self.up + other.up, self.down + other.down, self.disagree + other.disagree)


class RewardMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The reward's figures over one worker's completions since its start. The figures of several workers, and of
    several starts of a worker, can be added."""

    kind: ClassVar[str] = "reward"

    worker: str
    started: float
    """When the worker started. After a restart, it counts from zero again."""
    time: float
    groups: int = 0
    completions: int = 0
    """Completions of the groups, unscored ones included. A group's greedy completion counts only among failures."""
    not_applicable: int = 0
    """Completions that the reward does not apply to."""
    sample_parse_errors: int = 0
    """Completions scored 0, in whole or in part, because they lack what the grader reads: JSON, or a key of it."""
    failures: dict[str, int] = {}
    """Completions whose reward failed, retries included, by kind (docs/rewards.md)."""
    left_out: int = 0
    """Failed completions that were left out, so that their group could be trained on."""
    again: Pairs = Pairs()
    """Pairs of scores of the groups that were scored again a moment later (`reward_recheck`)."""
    again_failures: dict[str, int] = {}
    """Completions whose second scoring failed, by kind; no other figure includes them."""
    again_skipped: int = 0
    """Groups chosen to be scored again that were not, because the reward was too slow."""
    truth: dict[str, Flips] = {}
    """Comparisons with the component that counts as the truth, by its name: `audit`, or `clean` of a noisy reward."""
    audit_failed: int = 0
    """Completions that could not be audited."""
    between: dict[str, Tally] = {}
    """Disagreement of two graders of a `multi` grader, by `one / other`: completions that are high for one only."""
    drift: Pairs = Pairs()
    """First and newest scores of a panel of early completions, which is scored again from time to time."""
    drift_rounds: int = 0


Metrics = StepMetrics | EvaluationMetrics | UpdateMetrics | WorkerMetrics | RewardMetrics
