"""Groups → one table of the step's contributing tokens → minibatches of whole groups → micro-batches to compute.

    groups [admission order]
      ├─ table: one row a contributing token, in that order; every per-token figure of a step is a column of it
      └─ minibatch: whole groups, contiguous            one optimizer update each
           └─ micro-batch: sequences of similar length  one forward and backward each; B × T ≤ token_budget

Invariants: a contributing token (`token_selection`) has one row of the table, and is in one micro-batch, but for
completions whose gradient is zero whatever their tokens are: those count in the minibatch's mean, and nothing is
computed for them. Which micro-batch a token is in changes no gradient: its part of the loss is scaled by facts of the
minibatch alone.

Shape suffixes: B sequences, T positions, N tokens (of a micro-batch in a micro-batch, of the step in the table).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group

from .advantages import Column, Trajectory
from .token_selection import AgeCount, Passage, TrainableCompletion, contributing


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
    """int64: number of the sequence, for ratios of sequences: a completion's tokens are one, its answer's another."""
    completions_N: Tensor
    """int64: number of the completion, whose answer is part of it."""
    answer_N: Tensor
    """Bool: an answer token."""
    answer_advantages_N: Tensor
    """Of an answer token, what stands in its advantage's place; 0 of all others."""
    fresh_N: Tensor
    """Bool: of a completion that the policy being updated sampled whole, over caches of its own."""
    scales_N: Tensor
    """The token's share in its minibatch's mean, times its loss weight: the loss is Σ scale·ℓ."""

    def __len__(self) -> int:
        return len(self.behaviour_N)

    def to(self, device: torch.device) -> Table:
        """The same on another device."""
        return Table(*(getattr(self, name).to(device) for name in self.__slots__))

    def of_completions(self, column_N: Tensor) -> Column:
        """Of a column's N rows, those of completion tokens."""
        return column_N[~self.answer_N].double().cpu().numpy()

    def with_answers(self, column: Column, of_answers: Tensor) -> Tensor:
        """[N] the other way round: completion tokens have theirs, answer tokens what [N] `of_answers` says."""
        full_N = of_answers.clone()
        full_N[~self.answer_N] = torch.from_numpy(column).to(full_N)
        return full_N


@dataclass(frozen=True, slots=True)
class ChargedTokens:
    """The M sampled tokens of a step that do not contribute, and are charged for the divergence all the same."""

    part: MiniBatch
    behaviour_M: Tensor
    after: npt.NDArray[np.int64]
    """[M] the place among the step's completion tokens of the last one before it in its completion; -1 for none."""
    trajectory: npt.NDArray[np.int64]
    """[M] which trajectory it belongs to, counted over all groups."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """The E completions of a step that max_tokens cut off: the states after their last tokens."""

    part: MiniBatch
    trajectory: npt.NDArray[np.int64]
    """[E] which trajectory each ends, counted over all groups."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All completions of one optimizer step, as tensors."""

    table: Table
    samples: tuple[tuple[TrainableCompletion, ...], ...]
    """By group, the completions with a reward."""
    minibatches: tuple[MiniBatch, ...]
    charged: ChargedTokens | None
    counts: AgeCount

    @property
    def trajectories(self) -> tuple[tuple[Trajectory, ...], ...]:
        """By group: what advantages are made of. Their slices are of the completion tokens alone."""
        return tuple(tuple(s.trajectory for s in of_group) for of_group in self.samples)


def cut_off(batch: StepBatch, settings: Hyperparameters) -> CutOff:
    """For a critic that says what would have come. Completions without a contributing token need no value."""
    samples = [s for of_group in batch.samples for s in of_group]
    numbers = [i for i, s in enumerate(samples) if s.cut_off and s.trajectory.length]
    ends = [samples[number].end(row) for row, number in enumerate(numbers)]
    return CutOff(to_read(ends, settings.token_budget), np.array(numbers, np.int64))


def to_read(passages: Sequence[Passage], token_budget: int) -> MiniBatch:
    """Forward passes over these alone, whose rows are of a column of their own, from 0 on."""
    chunks = _within_budget(passages, token_budget)
    rows = slice(0, max((p.rows.stop for p in passages), default=0))
    return MiniBatch(tuple(_micro_batch(chunk) for chunk in chunks), rows)


def build_step_batch(groups: Sequence[Group], version: int, settings: Hyperparameters) -> StepBatch:
    """The batch for an update of policy `version`. Raises `InvalidData` for a token without a log-probability."""
    samples, counts = contributing(groups, version, settings)
    cut = np.array_split(np.arange(len(groups)), settings.minibatches)
    parts = [[s for i in part for s in samples[i]] for part in cut]
    return StepBatch(
        table=_table(parts, settings),
        samples=tuple(map(tuple, samples)),
        minibatches=tuple(_minibatches(parts, settings.token_budget)),
        charged=_charged([s for part in parts for s in part], settings),
        counts=counts,
    )


def _table(parts: list[list[TrainableCompletion]], settings: Hyperparameters) -> Table:
    samples = [s for part in parts for s in part]
    answer = np.concatenate([np.empty(0, np.bool_), *(s.answer for s in samples)])
    completion = np.repeat(np.arange(len(samples)), [s.tokens for s in samples])
    _, numbers = np.unique(2 * completion + answer, return_inverse=True)
    scales = [_scales(part, settings) for part in parts]
    return Table(
        behaviour_N=_column([s.behaviour for s in samples], np.float32),
        ages_N=_column([s.ages for s in samples], np.int64),
        sequences_N=torch.from_numpy(numbers),
        completions_N=torch.from_numpy(completion),
        answer_advantages_N=_column([s.answer * s.answer_advantage for s in samples], np.float32),
        answer_N=torch.from_numpy(answer),
        fresh_N=_column([np.full(s.tokens, s.fresh) for s in samples], np.bool_),
        scales_N=_column(scales, np.float32),
    )


def _scales(part: list[TrainableCompletion], settings: Hyperparameters) -> npt.NDArray[np.float64]:
    """[n] over the minibatch's tokens: 1 / divisor of its mean, times the token's loss weight.

    A completion counts with its answer, so that the two have the share in the gradient that advantage and weight say.

    token      Σ over all tokens / number of tokens (DAPO, arXiv 2503.14476)
    sequence   each completion's mean, then the mean over completions (GRPO as published: it gives the tokens of long
               wrong answers less weight than those of short ones, which teaches a policy to be wrong at length)
    constant   Σ over all tokens / (completions × max_tokens): no length in the divisor (Dr. GRPO, arXiv 2503.20783)
    """
    lengths = np.array([s.tokens for s in part], np.int64)
    match settings.loss_mean:
        case "token":
            divisors = np.full(len(part), lengths.sum())
        case "sequence":
            divisors = lengths * (lengths > 0).sum()
        case "constant":
            divisors = np.full(len(part), len(part) * settings.max_tokens)
    weights = np.concatenate([np.empty(0), *(s.weights for s in part)])
    return weights / np.repeat(divisors, lengths)


def _minibatches(parts: list[list[TrainableCompletion]], token_budget: int) -> list[MiniBatch]:
    found, first = [], 0
    for part in parts:
        tokens = slice(first, first + sum(s.tokens for s in part))
        chunks = _within_budget([s for s in part if s.tokens and not s.silent], token_budget)
        found.append(MiniBatch(tuple(_micro_batch(chunk) for chunk in chunks), tokens))
        first = tokens.stop
    return found


def _charged(samples: list[TrainableCompletion], settings: Hyperparameters) -> ChargedTokens | None:
    """None where there are none, or where the reward is not charged for the divergence."""
    sizes = [len(s.charged_at) for s in samples]
    if not sum(sizes) or not settings.kl_coefficient or settings.kl_in == "loss":
        return None
    ends = np.cumsum(sizes).tolist()
    found = [s.charged(slice(e - n, e)) for s, n, e in zip(samples, sizes, ends, strict=True) if n]
    return ChargedTokens(
        part=to_read(found, settings.token_budget),
        behaviour_M=_column([s.behaviour for s in found], np.float32),
        after=np.concatenate([_last_before(s) for s in samples]),
        trajectory=np.repeat(np.arange(len(samples)), sizes),
    )


def _last_before(sample: TrainableCompletion) -> npt.NDArray[np.int64]:
    """[k] of each charged token, the place of the last contributing completion token before it; -1 for none."""
    own = sample.targets_at[~sample.answer]
    number = np.searchsorted(own, sample.charged_at) - 1
    return np.where(number < 0, -1, sample.trajectory.tokens.start + number)


def _within_budget(samples: Sequence[Passage], token_budget: int) -> list[list[Passage]]:
    """Longest first (the largest need of memory shows at once), neighbours in length together; the order is stable.

    A sequence longer than the budget gets a micro-batch of its own.
    """
    chunks: list[list[Passage]] = []
    for sample in sorted(samples, key=lambda s: -s.length):
        if chunks and chunks[-1][0].length * (len(chunks[-1]) + 1) <= token_budget:
            chunks[-1].append(sample)
        else:
            chunks.append([sample])
    return chunks


def _micro_batch(samples: Sequence[Passage]) -> MicroBatch:
    inputs_BT = np.zeros((len(samples), samples[0].length), np.int64)
    for row, sample in zip(inputs_BT, samples, strict=True):
        row[: sample.length] = sample.ids[: sample.length]
    counts = [s.tokens for s in samples]
    return MicroBatch(
        inputs_BT=torch.from_numpy(inputs_BT),
        rows_N=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        positions_N=_column([s.targets_at for s in samples], np.int64) - 1,
        targets_N=_column([s.ids[s.targets_at] for s in samples], np.int64),
        table_N=_column([np.arange(s.rows.start, s.rows.stop) for s in samples], np.int64),
    )


def _column(parts: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *parts]).astype(dtype))
