"""The figures of a step: over its contributing tokens, in total and by age, and over the rewards of its groups.

Counts and the loss include all contributing tokens. All other figures are over completion tokens only, because they
estimate expectations under the policy, which did not choose the tokens of reference answers; those have a figure of
their own, `answer_logprob`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.types.metrics import AgeMetrics
from headrace_core.types.trajectory import Group

from ..algorithms.batch import Table
from ..algorithms.token_selection import AgeCount, rewards_differ
from ..distributed.process_group import ProcessGroup

_COMPUTED = "computed"
"""The column that marks the rows that were computed; those of groups without a gradient are not."""
MISMATCH = "mismatch_kl"
"""In `extra`: KL(engine ‖ learner) at equal weights, nats per token."""
REWARD_SHIFT = "reward_shift"
"""In `extra`: mean change of the rewards that the learner recomputed (`reevaluation`)."""
_FIELDS = ("loss", "proximal", "behaviour", "importance", "clipped")
"""Columns that `StepFigures` has a field for; the means of all others go to `extra`."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Figures over the completion tokens that were computed in a step; 0 if there are none."""

    ages: dict[int, AgeMetrics]
    loss: float
    """Sum of the minibatches' policy losses."""
    entropy: float
    effective_sample_size: float
    clip_share: float
    behaviour_kl: float
    extra: dict[str, float]


class StepLog:
    """Collects columns of the step's table on the device, micro-batch by micro-batch; `measure` evaluates them once, at
    the end of the step."""

    def __init__(self, table: Table, ranks: ProcessGroup) -> None:
        self._table = table
        self._ranks = ranks
        self._columns: dict[str, Tensor] = {}
        self.importance_N = np.full(len(table), np.nan)
        """After `measure`: the staleness weight of every row of the table; NaN where it was not computed."""

    def record(self, rows_N: Tensor, **values_N: Tensor) -> None:
        """Set these rows of the columns named by the keywords."""
        for name, value_N in (values_N | {_COMPUTED: torch.ones_like(rows_N)}).items():
            if name not in self._columns:
                self._columns[name] = torch.zeros(len(self._table), device=value_N.device)
            self._columns[name][rows_N] = value_N.detach().float()

    def record_initial(self, rows_N: Tensor, current_N: Tensor) -> None:
        """Set log-probabilities by the policy before the step's first update."""
        self.record(rows_N, current=current_N, initial=torch.ones_like(current_N))

    def measure(self, counts: AgeCount) -> StepFigures:
        """The figures of the whole step, and of each age. An age without computed tokens has counts only.

        All ranks call it together.
        """
        every = {n: self._ranks.sum(c).double().cpu().numpy() for n, c in sorted(self._columns.items())}
        empty = np.zeros(0)
        computed = every.pop(_COMPUTED, np.zeros(len(self._table))) > 0
        every["behaviour"] = self._table.behaviour_N.double().cpu().numpy()
        answer = self._table.answer_N.cpu().numpy()
        chosen = computed & ~answer
        self.importance_N = np.where(computed, every.get("importance", np.nan), np.nan)
        current, initial = every.pop("current", empty), every.pop("initial", empty) > 0
        columns = {name: column[chosen] for name, column in every.items()}
        extra = {name: _mean(column) for name, column in columns.items() if name not in _FIELDS}
        if answer.any():
            extra["answer_logprob"] = _mean(every.get("proximal", empty)[computed & answer])
        if len(initial) and (same := initial & chosen & self._table.fresh_N.cpu().numpy()).any():
            difference = (every["behaviour"] - current)[same]
            extra[MISMATCH] = _mean(np.expm1(-difference) + difference)
        age = self._table.ages_N.cpu().numpy()[chosen]
        all_ages = sorted(counts.contributing.keys() | counts.masked.keys())
        ess, clip, kl = _figures(columns, np.ones(len(age), np.bool_))
        return StepFigures(
            ages={a: _of_age(columns, age == a, counts, a) for a in all_ages},
            loss=float(every.get("loss", empty).sum()),
            entropy=_mean(-columns.get("proximal", empty)),
            effective_sample_size=ess,
            clip_share=clip,
            behaviour_kl=kl,
            extra=extra,
        )


def _of_age(
    columns: dict[str, npt.NDArray[np.float64]], chosen: npt.NDArray[np.bool_], counts: AgeCount, age: int
) -> AgeMetrics:
    ess, clip, kl = _figures(columns, chosen)
    masked = counts.masked[age]
    return AgeMetrics(
        tokens=counts.contributing[age] + masked,
        masked=masked,
        effective_sample_size=ess,
        clip_share=clip,
        behaviour_kl=kl,
    )


def _figures(columns: dict[str, npt.NDArray[np.float64]], chosen: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Effective sample size (Σw)² / (n Σw²), share of clipped tokens, mean of log π_behaviour − log π_prox."""
    if not chosen.any():
        return 0.0, 0.0, 0.0
    w = columns["importance"][chosen]
    squares = float((w * w).sum())
    ess = float(w.sum()) ** 2 / (len(w) * squares) if squares else 0.0
    return ess, _mean(columns["clipped"][chosen]), _mean((columns["behaviour"] - columns["proximal"])[chosen])


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Rewards and lengths of a step's groups, masked tokens included. None: there is nothing to average, which is not
    0."""

    reward_mean: float | None
    reward_std: float | None
    components: dict[str, float]
    zero_variance_share: float | None
    completions: int
    completion_length: float
    truncated_share: float


def summarise(groups: Sequence[Group]) -> GroupSummary:
    """The summary of a step's groups.

    Completions without a reward count in lengths only; groups with fewer than two rewards, not in zero_variance_share.
    """
    compared = [g for g in groups if sum(c.reward is not None for c in g.completions) > 1]
    completions = [c for g in groups for c in g.completions]
    rewards = [c.reward for c in completions if c.reward is not None]
    names = sorted({name for c in completions for name in c.components})
    return GroupSummary(
        reward_mean=_mean(rewards) if rewards else None,
        reward_std=float(np.std(rewards)) if rewards else None,
        components={n: _mean([c.components[n] for c in completions if n in c.components]) for n in names},
        zero_variance_share=_mean([not rewards_differ(g) for g in compared]) if compared else None,
        completions=len(completions),
        completion_length=_mean([int(c.sampled.sum()) for c in completions]),
        truncated_share=_mean([c.finish_reason == "length" for c in completions]),
    )


def _mean(values: Iterable[float] | npt.NDArray[np.float64]) -> float:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if len(array) else 0.0
