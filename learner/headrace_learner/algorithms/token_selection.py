"""Selects the tokens of a step that contribute to its gradient.

A token contributes if all of this holds: it is a completion token that the policy sampled, or an answer token that it
scored; its loss weight is above 0; its completion has a reward, and so has the group's greedy completion if the
algorithm uses one; it is not older than max_staleness.

An *answer token* belongs to the reference answer, which is appended after the reasoning (`Role.REFERENCE`). The policy
did not choose it. So with every algorithm its advantage is replaced by the weight that follows from the answer's
likelihood (1 without one), and for sequence-level ratios the answer is a sequence of its own. Rewards, penalties,
returns and values are of completion tokens only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from headrace_core.config.algorithm_presets import algorithm_preset
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidData
from headrace_core.types.staleness import ages, contributes
from headrace_core.types.trajectory import Completion, Group, Role

from .advantages import Trajectory


@dataclass(slots=True)
class AgeCount:
    """Number of tokens by age, for the ledger: contributing ones, and those masked because they are too old."""

    contributing: Counter[int] = field(default_factory=Counter)
    masked: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A sequence, and the tokens of it whose log-probabilities are to be computed."""

    ids: npt.NDArray[np.int32]
    """Token ids of the whole sequence, prompt included."""
    targets_at: npt.NDArray[np.int64]
    """[n] positions of the tokens in `ids`."""
    rows: slice
    """The n rows of the column that the results are written to."""

    @property
    def tokens(self) -> int:
        """Number of tokens to compute, n."""
        return len(self.targets_at)

    @property
    def length(self) -> int:
        """Number of input positions: all before the last target."""
        return int(self.targets_at[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCompletion(Passage):
    """A completion with a reward. Arrays are [n] over its contributing tokens; n may be 0."""

    completion: int
    """Its number within the group."""
    trajectory: Trajectory
    behaviour: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    ages: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]
    answer_advantage: float
    """What replaces the advantage of its answer tokens, see the module."""
    charged_at: npt.NDArray[np.int64]
    """[k] positions in `ids` of sampled tokens that do not contribute, because they are too old or have no loss weight.
    Their divergence from the base model still counts, if that is part of the reward."""
    charged_behaviour: npt.NDArray[np.float32]
    """[k] their log-probabilities by the behaviour policy."""
    fresh: bool
    """The policy being updated sampled all of its tokens, and its KV cache is of that policy, too."""
    zero_gradient: bool
    """The gradient is zero whatever its tokens are, so that nothing need be computed."""
    cut_off: bool = False
    """max_tokens cut it off after a sampled token."""

    def end(self, row: int) -> TrainableCompletion:
        """A passage whose only target is the token after the last one: for the critic's value of the final state."""
        ids = np.append(self.ids, self.ids[-1:])  # a placeholder: the next token is unknown, and not used
        return replace(self, ids=ids, targets_at=np.array([len(self.ids)]), rows=slice(row, row + 1))

    def charged(self, rows: slice) -> TrainableCompletion:
        """A passage whose targets are the tokens of `charged_at`; `rows` are of their own column."""
        return replace(self, targets_at=self.charged_at, behaviour=self.charged_behaviour, rows=rows)


@dataclass(slots=True)
class _RowAllocator:
    """Assigns rows of the step's columns, one completion after the other."""

    rows: int = 0
    """Rows assigned so far, of all tokens."""
    tokens: int = 0
    """Rows assigned so far in columns of completion tokens."""

    def allocate(self, answer: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
        """(rows of the table, rows in columns of completion tokens) of one completion's tokens."""
        rows = slice(self.rows, self.rows + len(answer))
        tokens = slice(self.tokens, self.tokens + int((~answer).sum()))
        self.rows, self.tokens = rows.stop, tokens.stop
        return rows, tokens


def contributing(
    groups: Sequence[Group], version: int, settings: Hyperparameters
) -> tuple[list[list[TrainableCompletion]], AgeCount]:
    """(the completions with a reward, by group; the ages of their tokens), for an update of policy `version`.

    Raises `InvalidData` for a token without a log-probability.
    """
    counts, allocator = AgeCount(), _RowAllocator()
    return [_samples(group, version, settings, counts, allocator) for group in groups], counts


def rewards_differ(group: Group) -> bool:
    """Whether the group's completions have different rewards; if not, all advantages over its baseline are zero."""
    return len({c.reward for c in group.completions if c.reward is not None}) > 1


def has_learning_signal(group: Group) -> bool:
    """Whether the group has a gradient with a group baseline: its rewards differ, or reference answers are trained."""
    rewarded = [c for c in group.completions if c.reward is not None]
    return rewards_differ(group) or any((c.trainable & c.answer).any() for c in rewarded)


def _has_zero_gradient(group: Group, settings: Hyperparameters) -> bool:
    """Whether the group's completion tokens have no gradient: their advantages are exactly 0, and no divergence term
    is added."""
    return (
        settings.kl_coefficient == 0
        and algorithm_preset(settings.algorithm).compares_within_group
        and not rewards_differ(group)
    )


def _samples(
    group: Group, version: int, settings: Hyperparameters, counts: AgeCount, allocator: _RowAllocator
) -> list[TrainableCompletion]:
    """The completions of one group that have a reward; counts their tokens in `counts`."""
    greedy = None if group.greedy is None else group.greedy.reward
    if algorithm_preset(settings.algorithm).wants_greedy and greedy is None:
        return []
    samples, zero_gradient = [], _has_zero_gradient(group, settings)
    cache_is_current = _cache_is_current(group, version, settings)
    for number, completion in enumerate(group.completions):
        if completion.reward is None:
            continue
        trainable = completion.trainable
        young = contributes(completion.versions, version, settings.max_staleness)
        age = ages(completion.versions, version)
        counts.contributing.update(age[trainable & young].tolist())
        counts.masked.update(age[trainable & ~young].tolist())
        selected = trainable & young
        answer = completion.answer[selected]
        rows, tokens = allocator.allocate(answer)
        trajectory = Trajectory(completion.reward, tokens, greedy)
        fresh = cache_is_current and bool((age[completion.sampled] == 0).all())
        no_gradient = zero_gradient and not answer.any()
        samples.append(_sample(group, number, trajectory, rows, selected, age, fresh, no_gradient))
    return samples


def _cache_is_current(group: Group, version: int, settings: Hyperparameters) -> bool:
    """Whether the KV cache of tokens that `version` sampled was certainly computed by `version`, too.

    With `keep_kv`, a request that waited during an update may have a prompt cache of the weights before, although all
    of its tokens were sampled by those after. No request is submitted before its group is admitted.
    """
    return settings.update_mode != "keep_kv" or group.admitted_version == version


def _answer_advantage(completion: Completion) -> float:
    """What replaces the advantage of the completion's answer tokens, see the module."""
    if completion.likelihood is None:
        return 1.0
    return completion.likelihood.answer_weight(completion.logprobs[completion.answer].tolist())


def _sample(
    group: Group,
    number: int,
    trajectory: Trajectory,
    rows: slice,
    selected: npt.NDArray[np.bool_],
    age: npt.NDArray[np.int32],
    fresh: bool,
    zero_gradient: bool,
) -> TrainableCompletion:
    completion = group.completions[number]
    behaviour = completion.logprobs[selected]
    charged = completion.sampled & (completion.roles == Role.COMPLETION) & ~selected
    if not np.isfinite(behaviour).all():
        raise InvalidData(f"group {group.group_id}: a token of the gradient has no finite log-probability")
    return TrainableCompletion(
        completion=number,
        trajectory=trajectory,
        rows=rows,
        ids=np.concatenate([group.prompt_ids, completion.token_ids]),
        targets_at=np.flatnonzero(selected) + len(group.prompt_ids),
        behaviour=behaviour,
        weights=completion.loss_weights[selected],
        ages=age[selected],
        answer=completion.answer[selected],
        answer_advantage=_answer_advantage(completion),
        charged_at=np.flatnonzero(charged) + len(group.prompt_ids),
        charged_behaviour=completion.logprobs[charged],
        fresh=fresh,
        zero_gradient=zero_gradient,
        cut_off=completion.finish_reason == "length" and bool(completion.sampled[-1:].all()),
    )
