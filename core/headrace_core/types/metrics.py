"""What workers measure and the gateway shows: one struct for each kind of entry in a job's metrics stream.

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
    """Tokens of one age in one step; figures but counts are of those computed: groups of equal rewards may not be."""

    tokens: int
    """Tokens of completions and reference answers of that age, masked ones included."""
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
    """By stage, since the step before was told: `wait` (for groups), `batch`, `train`, `publish`, `settle`, and that
    step's `snapshot` (waited for) and `checkpoint`."""
    reward_mean: float | None
    """Over the step's completions that have a reward, masked ones included; none where none has."""
    reward_std: float | None
    components: dict[str, float]
    """Mean of each reward component."""
    zero_variance_share: float | None
    """Share of the groups with two rewards or more whose rewards are all the same; none without such a group."""
    groups: int
    completions: int
    tokens: int
    """Of completions and reference answers, those that contributed to the gradient."""
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
    """The policy version that was measured: its weights sampled every token."""
    time: float
    seconds: float
    samples: int
    reward_mean: float | None
    """Over the samples that were scored; none where none was: that is not a reward of zero."""
    components: dict[str, float]
    reward_failed: int
    failures: dict[str, int] = {}
    """Those by kind (docs/rewards.md)."""
    not_applicable: int = 0
    """Samples of which the reward had no opinion."""
    sample_parse_errors: int = 0
    """Scored 0, in whole or in part, because they lack what the grader reads in them: JSON, or a key of it."""
    generation_failed: int = 0
    """Samples whose row the engine cannot serve: they have no completion, and no part in the other figures."""
    left_out: tuple[int, ...] = ()
    """Earlier steps whose evaluation was due and was not made, because the job was past them: one takes longer than
    `eval_interval` steps, or a worker or controller that died while it evaluated came back later."""
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
    """Where a worker's time went, since its start."""

    kind: ClassVar[str] = "worker"

    worker: str
    role: str
    """`rollout` or `learner`."""
    state: WorkerState = "running"
    time: float
    version: int
    uptime: float
    busy: float
    """Seconds of generating, or of training."""
    waiting: dict[str, float]
    """Seconds by what was waited for: `window` (learner is behind), `groups` (rollout is behind), `drained`, …"""
    tokens: int = 0
    """Sampled, or trained, since its start."""
    groups: int = 0
    running: int = 0
    """Requests in flight."""
    evaluation: tuple[int, int] | None = None
    """Of the evaluation begun last: the policy version held for it, and how many of its completions are sampled."""
    errors: dict[str, int] = {}
    """By kind, since its start."""


def furthest_evaluation(beats: Iterable[WorkerMetrics]) -> tuple[int, int]:
    """(policy version, completions so far) of the evaluation that came furthest; (-1, 0) where none was begun."""
    return max((beat.evaluation for beat in beats if beat.evaluation is not None), default=(-1, 0))


class Tally(msgspec.Struct, frozen=True):
    """Something counted or measured on n completions of each of some groups, x in a group's sum; tallies add up.

    The completions of a group share its prompt, so its sums are kept together: `agreement` makes intervals of them.
    """

    groups: int = 0
    """Groups with n > 0."""
    count: int = 0
    """Σn."""
    total: float = 0.0
    """Σx: of a share, how many of `count`."""
    squares: float = 0.0
    """Σx²."""
    products: float = 0.0
    """Σxn."""
    count_squares: int = 0
    """Σn²."""

    def with_group(self, values: Iterable[float]) -> Tally:
        """This, and one more group whose completions have these values."""
        each = list(values)
        n, x = len(each), float(sum(each))
        return self if n == 0 else self + Tally(1, n, x, x * x, x * n, n * n)

    def __add__(self, other: Tally) -> Tally:
        sums = (getattr(self, name) + getattr(other, name) for name in Tally.__struct_fields__)
        return Tally(*sums)


class Pairs(msgspec.Struct, frozen=True):
    """Completions that were scored twice."""

    equal: Tally = Tally()
    """Those with twice the same score."""
    difference: Tally = Tally()
    """|second − first|."""
    shift: Tally = Tally()
    """Second − first."""

    def with_group(self, first: Sequence[float], second: Sequence[float]) -> Pairs:
        """These, and one more group."""
        shifts = [b - a for a, b in zip(first, second, strict=True)]
        return Pairs(
            self.equal.with_group(d == 0 for d in shifts),
            self.difference.with_group(map(abs, shifts)),
            self.shift.with_group(shifts),
        )

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.equal + other.equal, self.difference + other.difference, self.shift + other.shift)


class Flips(msgspec.Struct, frozen=True):
    """A reward beside one that counts as the truth, both as low or high (below their thresholds, or not)."""

    up: Tally = Tally()
    """Of the completions that are low in truth: those the reward made high."""
    down: Tally = Tally()
    """Of those that are high in truth: those it made low."""
    disagree: Tally = Tally()
    """Of all: those on which the two disagree."""

    def with_group(self, high: Sequence[bool], truly: Sequence[bool]) -> Flips:
        """These, and one more group: what the reward says, and what is true."""
        pairs = list(zip(high, truly, strict=True))
        return Flips(
            self.up.with_group(said for said, true in pairs if not true),
            self.down.with_group(not said for said, true in pairs if true),
            self.disagree.with_group(said != true for said, true in pairs),
        )

    def __add__(self, other: Flips) -> Flips:
        return Flips(self.up + other.up, self.down + other.down, self.disagree + other.disagree)


class RewardMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What the reward did to one worker's completions, since its start; the figures of workers and starts add up."""

    kind: ClassVar[str] = "reward"

    worker: str
    started: float
    """When the worker started: a later start counts anew."""
    time: float
    groups: int = 0
    completions: int = 0
    """Of those groups, with those that have no score; a greedy one, which they are compared with, counts nowhere but
    among failures."""
    not_applicable: int = 0
    """Completions of which the reward had no opinion."""
    sample_parse_errors: int = 0
    """Scored 0, in whole or in part, because they lack what the grader reads in them: JSON, or a key of it."""
    failures: dict[str, int] = {}
    """Completions whose reward failed, also when tried again, by kind (docs/rewards.md)."""
    left_out: int = 0
    """Those of them that a group went on without."""
    again: Pairs = Pairs()
    """A share of the groups, scored a second time a moment later."""
    again_failures: dict[str, int] = {}
    """Completions whose second scoring failed, by kind; they count nowhere else."""
    again_skipped: int = 0
    """Groups not scored again because the reward was too slow for it."""
    truth: dict[str, Flips] = {}
    """By the component that counts as the truth: `audit`, or `clean` of a noisy reward."""
    audit_failed: int = 0
    """Completions that could not be audited."""
    between: dict[str, Tally] = {}
    """Of two graders of a `multi` grader, as `one / other`: the completions that one finds high and the other low."""
    drift: Pairs = Pairs()
    """The panel, some early completions, against their first scores: the newest round alone, not since the start."""
    drift_rounds: int = 0


Metrics = StepMetrics | EvaluationMetrics | UpdateMetrics | WorkerMetrics | RewardMetrics
