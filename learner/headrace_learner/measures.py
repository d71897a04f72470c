"""What a step measures: of the contributing tokens, by age; and of the groups, by their rewards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.metrics import AgeMetrics
from headrace_core.trajectory import Group

from .batch import AgeCount
from .losses import LossTokens, LossValues


@dataclass(frozen=True, slots=True)
class Measured:
    """Over the contributing tokens of a step; 0 where there are none."""

    ages: dict[int, AgeMetrics]
    loss: float
    entropy: float
    effective_sample_size: float
    clip_share: float
    behaviour_kl: float
    extra: dict[str, float]


@dataclass(slots=True)
class TokenLog:
    """Collects per-token values on the device; one transfer at the end of the step, not one a micro-batch."""

    _columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, tokens: LossTokens, values: LossValues, weighted_loss_N: Tensor) -> None:
        """Note one micro-batch."""
        columns = {
            "age": tokens.ages_N,
            "loss": weighted_loss_N,
            "importance": values.importance_N,
            "clipped": values.clipped_N,
            "proximal": tokens.proximal_N,
            "behaviour": tokens.behaviour_N,
        }
        for name, column in (columns | {f"extra {k}": v for k, v in values.extra.items()}).items():
            self._columns.setdefault(name, []).append(column.detach())

    def measure(self, counts: AgeCount) -> Measured:
        """The figures of the whole step, and of each age. An age that was wholly masked has only its counts."""
        columns = {name: torch.cat(parts).double().cpu().numpy() for name, parts in self._columns.items()}
        empty = np.zeros(0)
        age = columns.get("age", empty)
        all_ages = sorted(counts.contributing.keys() | counts.masked.keys())
        ess, clip, kl = _figures(columns, np.ones(len(age), np.bool_))
        return Measured(
            ages={a: _of_age(columns, age == a, counts, a) for a in all_ages},
            loss=_mean(columns.get("loss", empty)),
            entropy=_mean(-columns.get("proximal", empty)),
            effective_sample_size=ess,
            clip_share=clip,
            behaviour_kl=kl,
            extra={n.removeprefix("extra "): _mean(c) for n, c in columns.items() if n.startswith("extra ")},
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
    """Rewards and lengths of a step's groups, masked tokens included: what the policy did."""

    reward_mean: float
    reward_std: float
    components: dict[str, float]
    zero_variance_share: float
    completions: int
    completion_length: float
    truncated_share: float


def summarise(groups: Sequence[Group]) -> GroupSummary:
    """Completions whose reward was not applicable (None) count in lengths, not in rewards."""
    completions = [c for g in groups for c in g.completions]
    rewards = [c.reward for c in completions if c.reward is not None]
    names = sorted({name for c in completions for name in c.components})
    return GroupSummary(
        reward_mean=_mean(rewards),
        reward_std=float(np.std(rewards)) if rewards else 0.0,
        components={n: _mean([c.components[n] for c in completions if n in c.components]) for n in names},
        zero_variance_share=_mean([len({c.reward for c in g.completions if c.reward is not None}) < 2 for g in groups]),
        completions=len(completions),
        completion_length=_mean([int(c.sampled.sum()) for c in completions]),
        truncated_share=_mean([c.finish_reason == "length" for c in completions]),
    )


def _mean(values: Iterable[float] | npt.NDArray[np.float64]) -> float:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if len(array) else 0.0
