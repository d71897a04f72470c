"""Which tokens of a step contribute to its gradient, completion by completion.

A token contributes if it is a completion token that the policy sampled, or an answer token that it scored, with a loss
weight above 0, of a completion that has a reward (and, where the algorithm wants one, a greedy completion that has),
and not older than max_staleness.

An *answer token* is one of the reference answer, appended after the reasoning (`Role.REFERENCE`). The policy did not
choose it: in its advantage's place stands, whatever the algorithm, what the answer's likelihood says (1 where nobody
says), and in ratios of sequences it belongs to the answer, a sequence of its own. Rewards, penalties, returns and
values are of completion tokens alone.
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
    """Tokens by age, for the ledger: those that contribute, and those beyond max_staleness."""

    contributing: Counter[int] = field(default_factory=Counter)
    masked: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Tokens of a sequence whose log-probabilities are wanted."""

    ids: npt.NDArray[np.int32]
    targets_at: npt.NDArray[np.int64]
    """[n] their positions in `ids`."""
    rows: slice
    """[n] of the column that they are written to."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.targets_at)

    @property
    def length(self) -> int:
        """Input positions: everything before the last target."""
        return int(self.targets_at[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCompletion(Passage):
    """One completion's part in the gradient; arrays are [n] over its contributing tokens, n may be 0."""

    completion: int
    """Which of its group's."""
    trajectory: Trajectory
    behaviour: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    ages: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]
    answer_advantage: float
    """Of its answer tokens, see the module."""
    charged_at: npt.NDArray[np.int64]
    """[k] positions in `ids` of tokens that it sampled and that do not contribute: too old, or without weight. The
    divergence from the base model is charged for them all the same, where it is part of the reward."""
    charged_behaviour: npt.NDArray[np.float32]
    fresh: bool
    """All that it sampled, it sampled by the policy being updated, over caches of that policy alone."""
    silent: bool
    """Nothing of it has a gradient."""
    cut_off: bool = False
    """Its last token was sampled, and max_tokens ended it there."""

    def end(self, row: int) -> TrainableCompletion:
        """The same, with what would come after its last token in the place of what contributes."""
        ids = np.append(self.ids, self.ids[-1:])  # what follows is not known, and is not looked at
        return replace(self, ids=ids, targets_at=np.array([len(self.ids)]), rows=slice(row, row + 1))

    def charged(self, rows: slice) -> TrainableCompletion:
        """The same, with the tokens in `charged_at` in the place of those that contribute; `rows` are of theirs."""
        return replace(self, targets_at=self.charged_at, behaviour=self.charged_behaviour, rows=rows)


@dataclass(slots=True)
class _Taken:
    """How much of the step's columns is taken so far."""

    rows: int = 0
    tokens: int = 0
    """Completion tokens alone."""

    def more(self, answer: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
        """Room for these tokens: rows of the table, and places among the step's completion tokens."""
        rows = slice(self.rows, self.rows + len(answer))
        tokens = slice(self.tokens, self.tokens + int((~answer).sum()))
        self.rows, self.tokens = rows.stop, tokens.stop
        return rows, tokens


def contributing(
    groups: Sequence[Group], version: int, settings: Hyperparameters
) -> tuple[list[list[TrainableCompletion]], AgeCount]:
    """By group, the completions with a reward, for an update of policy `version`; and the ages of their tokens.

    Raises `InvalidData` for a token without a log-probability.
    """
    counts, taken = AgeCount(), _Taken()
    return [_samples(group, version, settings, counts, taken) for group in groups], counts


def rewards_differ(group: Group) -> bool:
    """Whether its completions can be told apart by their rewards: else a group baseline leaves nothing to learn."""
    return len({c.reward for c in group.completions if c.reward is not None}) > 1


def has_learning_signal(group: Group) -> bool:
    """Whether a group baseline leaves something to learn: by rewards that differ, or by answers that are trained."""
    rewarded = [c for c in group.completions if c.reward is not None]
    return rewards_differ(group) or any((c.trainable & c.answer).any() for c in rewarded)


def _is_silent(group: Group, settings: Hyperparameters) -> bool:
    """Whether its completion tokens have no gradient: their advantages are exactly 0, and nothing else is learned."""
    return (
        settings.kl_coefficient == 0
        and algorithm_preset(settings.algorithm).compares_within_group
        and not rewards_differ(group)
    )


def _samples(
    group: Group, version: int, settings: Hyperparameters, counts: AgeCount, taken: _Taken
) -> list[TrainableCompletion]:
    """Of the completions with a reward."""
    greedy = None if group.greedy is None else group.greedy.reward
    if algorithm_preset(settings.algorithm).wants_greedy and greedy is None:
        return []
    found, silent, clean = [], _is_silent(group, settings), _only_its_caches(group, version, settings)
    for number, completion in enumerate(group.completions):
        if completion.reward is None:
            continue
        wanted = completion.trainable
        young = contributes(completion.versions, version, settings.max_staleness)
        age = ages(completion.versions, version)
        counts.contributing.update(age[wanted & young].tolist())
        counts.masked.update(age[wanted & ~young].tolist())
        kept = wanted & young
        answer = completion.answer[kept]
        rows, tokens = taken.more(answer)
        trajectory = Trajectory(completion.reward, tokens, greedy)
        fresh = clean and bool((age[completion.sampled] == 0).all())
        found.append(_sample(group, number, trajectory, rows, kept, age, fresh, silent and not answer.any()))
    return found


def _only_its_caches(group: Group, version: int, settings: Hyperparameters) -> bool:
    """Whether what `version` sampled of the group, it sampled over caches of its own alone.

    With `keep_kv` a request that waited through an update may find its prompt's cache computed by the weights before,
    though all of its tokens are of those after. No request was submitted before its group was admitted.
    """
    return settings.update_mode != "keep_kv" or group.admitted_version == version


def _answer_advantage(completion: Completion) -> float:
    if completion.likelihood is None:
        return 1.0
    return completion.likelihood.answer_weight(completion.logprobs[completion.answer].tolist())


def _sample(
    group: Group,
    number: int,
    trajectory: Trajectory,
    rows: slice,
    kept: npt.NDArray[np.bool_],
    age: npt.NDArray[np.int32],
    fresh: bool,
    silent: bool,
) -> TrainableCompletion:
    completion = group.completions[number]
    behaviour = completion.logprobs[kept]
    charged = completion.sampled & (completion.roles == Role.COMPLETION) & ~kept
    if not np.isfinite(behaviour).all():
        raise InvalidData(f"group {group.group_id}: a token of the gradient has no finite log-probability")
    return TrainableCompletion(
        completion=number,
        trajectory=trajectory,
        rows=rows,
        ids=np.concatenate([group.prompt_ids, completion.token_ids]),
        targets_at=np.flatnonzero(kept) + len(group.prompt_ids),
        behaviour=behaviour,
        weights=completion.loss_weights[kept],
        ages=age[kept],
        answer=completion.answer[kept],
        answer_advantage=_answer_advantage(completion),
        charged_at=np.flatnonzero(charged) + len(group.prompt_ids),
        charged_behaviour=completion.logprobs[charged],
        fresh=fresh,
        silent=silent,
        cut_off=completion.finish_reason == "length" and bool(completion.sampled[-1:].all()),
    )
