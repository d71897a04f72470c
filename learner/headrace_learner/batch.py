"""Groups → one table of the step's contributing tokens → minibatches of whole groups → micro-batches to compute.

    groups [admission order]
      ├─ table: one row a contributing token, in that order; every per-token figure of a step is a column of it
      └─ minibatch: whole groups, contiguous            one optimizer update each
           └─ micro-batch: sequences of similar length  one forward and backward each; B × T ≤ token_budget

Invariants: a token contributes if it is a completion token that the policy sampled, with a loss weight above 0, of a
completion that has a reward (and, where the algorithm wants one, a greedy completion that has), and not older than
max_staleness. It has one row of the table then, and is in one micro-batch, but for groups whose gradient is zero
whatever their tokens are: those count in the minibatch's mean, and nothing is computed for them. Which micro-batch a
token is in changes no gradient: its part of the loss is scaled by facts of the minibatch alone.

Shape suffixes: B sequences, T positions, N tokens (of a micro-batch in a micro-batch, of the step in the table).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.algorithms import algorithm_facts
from headrace_core.errors import InvalidData
from headrace_core.hyperparameters import Hyperparameters
from headrace_core.staleness import ages, contributes
from headrace_core.trajectory import Completion, Group, Role

from .advantages import Trajectory


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. Right-padded, so that causal attention needs no mask: no token sees what comes after it."""

    inputs_BT: Tensor
    """int64 token ids; a sequence ends before its last contributing token, which is only ever a target."""
    rows_N: Tensor
    positions_N: Tensor
    """With `rows_N`: the input position whose output predicts the token."""
    targets_N: Tensor
    table_N: Tensor
    """Each token's row in the step's table."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one optimizer update sees."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: slice
    """Its rows of the step's table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns known before any forward pass, [N] each."""

    behaviour_N: Tensor
    ages_N: Tensor
    """int64: policy versions between sampling and this update; none is above max_staleness."""
    sequences_N: Tensor
    """int64: number of the completion, among all of the step that have a contributing token."""
    scales_N: Tensor
    """The token's share in its minibatch's mean, times its loss weight: the loss is Σ scale·ℓ."""

    def __len__(self) -> int:
        return len(self.behaviour_N)

    def to(self, device: torch.device) -> Table:
        """The same on another device."""
        return Table(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(slots=True)
class AgeCount:
    """Tokens by age, for the ledger: those that contribute, and those beyond max_staleness."""

    contributing: Counter[int] = field(default_factory=Counter)
    masked: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's work."""

    table: Table
    trajectories: tuple[tuple[Trajectory, ...], ...]
    """By group, those with a reward: what advantages are made of."""
    minibatches: tuple[MiniBatch, ...]
    counts: AgeCount


@dataclass(frozen=True, slots=True)
class _Sample:
    """One completion's part in the gradient; arrays are [n] over its contributing tokens, n may be 0."""

    trajectory: Trajectory
    ids: npt.NDArray[np.int32]
    targets_at: npt.NDArray[np.int64]
    """Positions of the contributing tokens in `ids`."""
    behaviour: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    ages: npt.NDArray[np.int32]
    silent: bool
    """Its advantage is zero."""

    @property
    def length(self) -> int:
        """Input positions: everything before the last target."""
        return int(self.targets_at[-1])


def lay_out(groups: Sequence[Group], version: int, settings: Hyperparameters) -> StepBatch:
    """The batch for an update of policy `version`. Raises `InvalidData` for a token without a log-probability."""
    counts, first = AgeCount(), 0
    samples: list[list[_Sample]] = []
    for group in groups:
        samples.append(_samples(group, version, settings, counts, first))
        first += sum(s.trajectory.length for s in samples[-1])
    cut = np.array_split(np.arange(len(groups)), settings.minibatches)
    parts = [[s for i in part for s in samples[i]] for part in cut]
    return StepBatch(
        table=_table(parts, settings),
        trajectories=tuple(tuple(s.trajectory for s in of_group) for of_group in samples),
        minibatches=tuple(_minibatches(parts, settings.token_budget)),
        counts=counts,
    )


def rewards_differ(group: Group) -> bool:
    """Whether its completions can be told apart by their rewards: else a group baseline leaves nothing to learn."""
    return len({c.reward for c in group.completions if c.reward is not None}) > 1


def _is_silent(group: Group, settings: Hyperparameters) -> bool:
    """Whether its tokens have no gradient, and no figure that others need depends on them."""
    alone = settings.kl_coefficient == 0 and settings.importance != "second_moment"
    return alone and algorithm_facts(settings.algorithm).compares_within_group and not rewards_differ(group)


def _samples(group: Group, version: int, settings: Hyperparameters, counts: AgeCount, first: int) -> list[_Sample]:
    """Of the completions with a reward; `first` is the table's next free row."""
    greedy = None if group.greedy is None else group.greedy.reward
    if algorithm_facts(settings.algorithm).wants_greedy and greedy is None:
        return []
    found, silent = [], _is_silent(group, settings)
    for completion in group.completions:
        if completion.reward is None:
            continue
        wanted = completion.sampled & (completion.roles == Role.COMPLETION) & (completion.loss_weights > 0)
        young = contributes(completion.versions, version, settings.max_staleness)
        age = ages(completion.versions, version)
        counts.contributing.update(age[wanted & young].tolist())
        counts.masked.update(age[wanted & ~young].tolist())
        kept = wanted & young
        rows = slice(first, first + int(kept.sum()))
        found.append(_sample(group, completion, Trajectory(completion.reward, rows, greedy), kept, age, silent))
        first = rows.stop
    return found


def _sample(
    group: Group,
    completion: Completion,
    trajectory: Trajectory,
    kept: npt.NDArray[np.bool_],
    age: npt.NDArray[np.int32],
    silent: bool,
) -> _Sample:
    behaviour = completion.logprobs[kept]
    if not np.isfinite(behaviour).all():
        raise InvalidData(f"group {group.group_id}: a sampled token has no finite log-probability")
    return _Sample(
        trajectory=trajectory,
        ids=np.concatenate([group.prompt_ids, completion.token_ids]),
        targets_at=np.flatnonzero(kept) + len(group.prompt_ids),
        behaviour=behaviour,
        weights=completion.loss_weights[kept],
        ages=age[kept],
        silent=silent,
    )


def _table(parts: list[list[_Sample]], settings: Hyperparameters) -> Table:
    samples = [s for part in parts for s in part]
    lengths = [s.trajectory.length for s in samples]
    numbers = np.repeat(np.arange(sum(n > 0 for n in lengths)), [n for n in lengths if n > 0])
    scales = [_scales(part, settings) for part in parts]
    return Table(
        behaviour_N=_column([s.behaviour for s in samples], np.float32),
        ages_N=_column([s.ages for s in samples], np.int64),
        sequences_N=torch.from_numpy(numbers),
        scales_N=_column(scales, np.float32),
    )


def _scales(part: list[_Sample], settings: Hyperparameters) -> npt.NDArray[np.float64]:
    """[n] over the minibatch's tokens: 1 / divisor of its mean, times the token's loss weight.

    token      Σ over all tokens / number of tokens (DAPO, arXiv 2503.14476)
    sequence   each completion's mean, then the mean over completions (GRPO as published: it gives the tokens of long
               wrong answers less weight than those of short ones, which teaches a policy to be wrong at length)
    constant   Σ over all tokens / (completions × max_tokens): no length in the divisor (Dr. GRPO, arXiv 2503.20783)
    """
    lengths = np.array([s.trajectory.length for s in part], np.int64)
    match settings.loss_mean:
        case "token":
            divisors = np.full(len(part), lengths.sum())
        case "sequence":
            divisors = lengths * (lengths > 0).sum()
        case "constant":
            divisors = np.full(len(part), len(part) * settings.max_tokens)
    weights = np.concatenate([np.empty(0), *(s.weights for s in part)])
    return weights / np.repeat(divisors, lengths)


def _minibatches(parts: list[list[_Sample]], token_budget: int) -> list[MiniBatch]:
    found, first = [], 0
    for part in parts:
        tokens = slice(first, first + sum(s.trajectory.length for s in part))
        chunks = _within_budget([s for s in part if s.trajectory.length and not s.silent], token_budget)
        found.append(MiniBatch(tuple(_micro_batch(chunk) for chunk in chunks), tokens))
        first = tokens.stop
    return found


def _within_budget(samples: list[_Sample], token_budget: int) -> list[list[_Sample]]:
    """Longest first (the largest need of memory shows at once), neighbours in length together; the order is stable.

    A sequence longer than the budget gets a micro-batch of its own.
    """
    chunks: list[list[_Sample]] = []
    for sample in sorted(samples, key=lambda s: -s.length):
        if chunks and chunks[-1][0].length * (len(chunks[-1]) + 1) <= token_budget:
            chunks[-1].append(sample)
        else:
            chunks.append([sample])
    return chunks


def _micro_batch(samples: list[_Sample]) -> MicroBatch:
    inputs_BT = np.zeros((len(samples), samples[0].length), np.int64)
    for row, sample in zip(inputs_BT, samples, strict=True):
        row[: sample.length] = sample.ids[: sample.length]
    counts = [len(s.targets_at) for s in samples]
    return MicroBatch(
        inputs_BT=torch.from_numpy(inputs_BT),
        rows_N=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        positions_N=_column([s.targets_at for s in samples], np.int64) - 1,
        targets_N=_column([s.ids[s.targets_at] for s in samples], np.int64),
        table_N=_column([np.arange(s.trajectory.tokens.start, s.trajectory.tokens.stop) for s in samples], np.int64),
    )


def _column(parts: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *parts]).astype(dtype))
