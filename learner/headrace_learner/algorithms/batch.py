"""The batch of a step: a table of its contributing tokens, split into minibatches of groups, and those into
micro-batches.

    groups [admission order]
      ├─ table: one row per contributing token, in that order; every per-token figure of a step is a column of it
      └─ minibatch: whole groups, contiguous            one optimizer update each
           └─ micro-batch: sequences of similar length  one forward and backward pass each; B × T ≤ token_budget

Invariants: each contributing token (`token_selection`) has one row of the table and is in exactly one micro-batch.
Except: completions whose gradient is zero whatever their tokens are count in the minibatch's mean, but nothing is
computed for them. The assignment of tokens to micro-batches does not change the gradient, because a token's share of
the loss is scaled by properties of the minibatch only.

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
    """One forward pass. Sequences are right-padded, so that causal attention needs no padding mask."""

    inputs_BT: Tensor
    """int64 token ids. A sequence ends before its last contributing token, which is only a target."""
    rows_N: Tensor
    """int64: the sequence (row of `inputs_BT`) that each token belongs to."""
    positions_N: Tensor
    """int64: the input position whose output predicts the token."""
    targets_N: Tensor
    """int64: the token ids to predict."""
    table_N: Tensor
    """int64: each token's row in the step's table."""

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on another device."""
        return MicroBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The data of one optimizer update."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: slice
    """The minibatch's rows of the step's table."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of a step that are known before any forward pass, [N] each."""

    behaviour_N: Tensor
    """Log-probability by the policy that sampled (or scored) the token."""
    ages_N: Tensor
    """int64: policy versions between sampling and this update; at most max_staleness."""
    sequences_N: Tensor
    """int64: number of the sequence, for sequence-level ratios. A completion and its reference answer are two."""
    completions_N: Tensor
    """int64: number of the completion; its reference answer has the same."""
    answer_N: Tensor
    """Bool: a token of a reference answer."""
    answer_advantages_N: Tensor
    """What replaces the advantage of an answer token; 0 for all other tokens."""
    fresh_N: Tensor
    """Bool: the policy being updated sampled the whole completion, and its KV cache is of that policy, too."""
    scales_N: Tensor
    """The token's weight in its minibatch's mean, times its loss weight: the loss is Σ scale·ℓ."""

    def __len__(self) -> int:
        return len(self.behaviour_N)

    def to(self, device: torch.device) -> Table:
        """A copy on another device."""
        return Table(*(getattr(self, name).to(device) for name in self.__slots__))

    def of_completions(self, column_N: Tensor) -> Column:
        """The rows of completion tokens in a column [N], which has rows for answer tokens, too."""
        return column_N[~self.answer_N].double().cpu().numpy()

    def with_answers(self, column: Column, of_answers: Tensor) -> Tensor:
        """[N] the inverse of `of_completions`: completion tokens from `column`, answer tokens from `of_answers` [N]."""
        full_N = of_answers.clone()
        full_N[~self.answer_N] = torch.from_numpy(column).to(full_N)
        return full_N


@dataclass(frozen=True, slots=True)
class ChargedTokens:
    """The M sampled tokens of a step that do not contribute to the gradient, but whose divergence from the base model
    counts in the reward."""

    part: MiniBatch
    behaviour_M: Tensor
    after: npt.NDArray[np.int64]
    """[M] row, among completion tokens, of the last contributing token before it in its completion; -1: none."""
    trajectory: npt.NDArray[np.int64]
    """[M] number of its trajectory, counted over all groups."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """The states after the last tokens of the E completions of a step that max_tokens cut off."""

    part: MiniBatch
    trajectory: npt.NDArray[np.int64]
    """[E] number of the trajectory, counted over all groups."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All completions of one optimizer step, as tensors."""

    table: Table
    samples: tuple[tuple[TrainableCompletion, ...], ...]
    """The completions with a reward, by group."""
    minibatches: tuple[MiniBatch, ...]
    charged: ChargedTokens | None
    counts: AgeCount

    @property
    def trajectories(self) -> tuple[tuple[Trajectory, ...], ...]:
        """The inputs of advantage functions, by group. Their slices are into columns of completion tokens only."""
        return tuple(tuple(s.trajectory for s in of_group) for of_group in self.samples)


def cut_off(batch: StepBatch, settings: Hyperparameters) -> CutOff:
    """The states for which the critic estimates what would have followed.

    Completions without a contributing token need no value.
    """
    samples = [s for of_group in batch.samples for s in of_group]
    numbers = [i for i, s in enumerate(samples) if s.cut_off and s.trajectory.length]
    ends = [samples[number].end(row) for row, number in enumerate(numbers)]
    return CutOff(forward_only(ends, settings.token_budget), np.array(numbers, np.int64))


def forward_only(passages: Sequence[Passage], token_budget: int) -> MiniBatch:
    """A minibatch for forward passes over these passages; their `rows` are of a separate column, from 0."""
    chunks = _within_budget(passages, token_budget)
    rows = slice(0, max((p.rows.stop for p in passages), default=0))
    return MiniBatch(tuple(_micro_batch(chunk) for chunk in chunks), rows)


def build_step_batch(groups: Sequence[Group], version: int, settings: Hyperparameters) -> StepBatch:
    """The batch for an update of policy `version`. Raises `InvalidData` for a token without a log-probability."""
    samples, counts = contributing(groups, version, settings)
    split = np.array_split(np.arange(len(groups)), settings.minibatches)
    parts = [[s for i in part for s in samples[i]] for part in split]
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
    """[n] the scale of each token of a minibatch: its weight in the mean, times its loss weight.

    A completion and its reference answer count as one sequence, so that only advantage and answer weight determine
    their shares of the gradient.

    token      Σ over all tokens / number of tokens (DAPO, arXiv 2503.14476)
    sequence   each completion's mean, then the mean over completions (GRPO as published; tokens of long wrong answers
               weigh less than those of short ones, which makes wrong answers longer)
    constant   Σ over all tokens / (completions × max_tokens): independent of lengths (Dr. GRPO, arXiv 2503.20783)
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
    minibatches, first = [], 0
    for part in parts:
        tokens = slice(first, first + sum(s.tokens for s in part))
        chunks = _within_budget([s for s in part if s.tokens and not s.zero_gradient], token_budget)
        minibatches.append(MiniBatch(tuple(_micro_batch(chunk) for chunk in chunks), tokens))
        first = tokens.stop
    return minibatches


def _charged(samples: list[TrainableCompletion], settings: Hyperparameters) -> ChargedTokens | None:
    """None if there are no such tokens, or the divergence is not part of the reward."""
    sizes = [len(s.charged_at) for s in samples]
    if not sum(sizes) or not settings.kl_coefficient or settings.kl_in == "loss":
        return None
    ends = np.cumsum(sizes).tolist()
    charged = [s.charged(slice(e - n, e)) for s, n, e in zip(samples, sizes, ends, strict=True) if n]
    return ChargedTokens(
        part=forward_only(charged, settings.token_budget),
        behaviour_M=_column([s.behaviour for s in charged], np.float32),
        after=np.concatenate([_last_before(s) for s in samples]),
        trajectory=np.repeat(np.arange(len(samples)), sizes),
    )


def _last_before(sample: TrainableCompletion) -> npt.NDArray[np.int64]:
    """[k] for each charged token, the row of the last contributing completion token before it; -1: none."""
    contributing_at = sample.targets_at[~sample.answer]
    number = np.searchsorted(contributing_at, sample.charged_at) - 1
    return np.where(number < 0, -1, sample.trajectory.tokens.start + number)


def _within_budget(samples: Sequence[Passage], token_budget: int) -> list[list[Passage]]:
    """Sort by length and cut into micro-batches of at most `token_budget` padded tokens; the order is stable.

    The longest come first, so that a lack of memory shows at once. A sequence longer than the budget gets a micro-batch
    of its own.
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
