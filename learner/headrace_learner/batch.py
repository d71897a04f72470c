"""Groups → minibatches of whole groups → padded micro-batches within a token budget.

    groups [admission order]
      └─ minibatch: whole groups, contiguous            one optimizer update each
           └─ micro-batch: sequences of similar length  one forward and backward each; B × T ≤ token_budget

Invariants: a token is in exactly one micro-batch if it contributes, in none otherwise. It contributes if it is a
completion token that the policy sampled, with a loss weight above 0, of a completion whose advantage is not None, and
not older than max_staleness. Which micro-batch a token is in changes no gradient: the loss is summed over all
micro-batches of a minibatch before it is divided.

Shape suffixes: B sequences, T positions, N contributing tokens of a micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.errors import InvalidData
from headrace_core.staleness import ages, contributes
from headrace_core.trajectory import Completion, Group, Role

from .advantages import AdvantageFunction, TokenAdvantages


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. Right-padded, so that causal attention needs no mask: no token sees what comes after it."""

    inputs_BT: Tensor
    """int64 token ids; a sequence ends before its last contributing token, which is only ever a target."""
    rows_N: Tensor
    positions_N: Tensor
    """With `rows_N`: the input position whose output predicts the token."""
    targets_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    ages_N: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one optimizer update sees."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: int
    """Contributing tokens: the divisor of the loss."""


@dataclass(slots=True)
class AgeCount:
    """Tokens by age, for the ledger: those that contribute, and those beyond max_staleness."""

    contributing: Counter[int] = field(default_factory=Counter)
    masked: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One completion's part in the gradient; the arrays are [n] over its contributing tokens."""

    ids: npt.NDArray[np.int32]
    targets_at: npt.NDArray[np.int64]
    """Positions of the contributing tokens in `ids`."""
    behaviour: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    ages: npt.NDArray[np.int32]

    @property
    def length(self) -> int:
        """Input positions: everything before the last target."""
        return int(self.targets_at[-1])


def minibatches(
    groups: Sequence[Group],
    advantages: AdvantageFunction,
    version: int,
    max_staleness: int,
    count: int,
    token_budget: int,
) -> tuple[list[MiniBatch], AgeCount]:
    """Cut the batch for an update of policy `version` into `count` minibatches; also, the ages of its tokens."""
    tally = AgeCount()
    found = []
    for part in np.array_split(np.arange(len(groups)), count):
        samples = [s for i in part for s in _samples(groups[i], advantages(groups[i]), version, max_staleness, tally)]
        micro = tuple(_micro_batch(chunk) for chunk in _within_budget(samples, token_budget))
        found.append(MiniBatch(micro, sum(len(s.targets_at) for s in samples)))
    return found, tally


def _samples(
    group: Group,
    advantages: tuple[TokenAdvantages | None, ...],
    version: int,
    max_staleness: int,
    tally: AgeCount,
) -> list[_Sample]:
    samples = []
    for completion, advantage in zip(group.completions, advantages, strict=True):
        if advantage is None:
            continue
        wanted = completion.sampled & (completion.roles == Role.COMPLETION) & (completion.loss_weights > 0)
        age = ages(completion.versions, version)
        young = contributes(completion.versions, version, max_staleness)
        tally.contributing.update(age[wanted & young].tolist())
        tally.masked.update(age[wanted & ~young].tolist())
        if (wanted & young).any():
            samples.append(_sample(group, completion, advantage, wanted & young, age))
    return samples


def _sample(
    group: Group,
    completion: Completion,
    advantage: TokenAdvantages,
    kept: npt.NDArray[np.bool_],
    age: npt.NDArray[np.int32],
) -> _Sample:
    behaviour = completion.logprobs[kept]
    if not np.isfinite(behaviour).all():
        raise InvalidData(f"group {group.group_id}: a sampled token has no finite log-probability")
    return _Sample(
        ids=np.concatenate([group.prompt_ids, completion.token_ids]),
        targets_at=np.flatnonzero(kept) + len(group.prompt_ids),
        behaviour=behaviour,
        advantages=advantage[kept],
        weights=completion.loss_weights[kept],
        ages=age[kept],
    )


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
        positions_N=torch.from_numpy(np.concatenate([s.targets_at for s in samples]) - 1),
        targets_N=torch.from_numpy(np.concatenate([s.ids[s.targets_at] for s in samples]).astype(np.int64)),
        behaviour_N=torch.from_numpy(np.concatenate([s.behaviour for s in samples])),
        advantages_N=torch.from_numpy(np.concatenate([s.advantages for s in samples])),
        weights_N=torch.from_numpy(np.concatenate([s.weights for s in samples])),
        ages_N=torch.from_numpy(np.concatenate([s.ages for s in samples]).astype(np.int64)),
    )
