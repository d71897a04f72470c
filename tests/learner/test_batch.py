"""Which token is in which micro-batch, at which row of the table and with which share; and which is in none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace_core.errors import InvalidData
from headrace_core.types.trajectory import NO_VERSION, Completion, Group, Role, sampled_completion
from headrace_learner.algorithms.advantages import Trajectory
from headrace_learner.algorithms.batch import StepBatch, build_step_batch
from headrace_learner.algorithms.token_selection import has_learning_signal

from .cases import eventful_group, hyperparameters, random_group


def multi_turn() -> Group:
    """Two completions; the first: sampled by 3, by 4, an environment token, weight 0, sampled by 5, by 6."""
    first = Completion(
        token_ids=np.array([11, 12, 13, 14, 15, 16], np.int32),
        logprobs=np.array([-0.1, -0.2, np.nan, -0.4, -0.5, -0.6], np.float32),
        versions=np.array([3, 4, NO_VERSION, 5, 5, 6], np.int32),
        roles=np.array([Role.COMPLETION] * 2 + [Role.ENVIRONMENT] + [Role.COMPLETION] * 3, np.uint8),
        loss_weights=np.array([1, 1, 1, 0, 0.5, 1], np.float32),
        finish_reason="stop",
        reward=1.0,
    )
    second = completion_of(21, version=6, reward=0.0)
    return Group(0, 1, 0, 3, np.array([1, 2], np.int32), (first, second))


def completion_of(*ids: int, version: int = 0, reward: float | None = 1.0) -> Completion:
    size = len(ids)
    return sampled_completion(
        np.array(ids), np.full(size, -0.7), np.full(size, version), finish_reason="length", reward=reward
    )


def group_of(*completions: Completion, group_id: int = 0) -> Group:
    return Group(group_id, 1, group_id, 0, np.array([1, 2], np.int32), completions)


def laid_out(groups: list[Group], version: int = 0, **settings: object) -> StepBatch:
    """REINFORCE++ computes every group, also those whose rewards are all equal."""
    return build_step_batch(
        groups, version, hyperparameters(**{"token_budget": 4096, "algorithm": "reinforce_pp"} | settings)
    )


def test_every_field_of_a_small_batch() -> None:
    batch = laid_out([multi_turn()], version=6)
    assert (batch.counts.contributing, batch.counts.masked) == (Counter({2: 1, 1: 1, 0: 2}), Counter({3: 1}))
    assert batch.trajectories == ((Trajectory(1.0, slice(0, 3)), Trajectory(0.0, slice(3, 4))),)
    table = batch.table
    assert table.behaviour_N.tolist() == pytest.approx([-0.2, -0.5, -0.6, -0.7])
    assert table.ages_N.tolist() == [2, 1, 0, 0]
    assert table.sequences_N.tolist() == [0, 0, 0, 1]
    assert table.scales_N.tolist() == [0.25, 0.125, 0.25, 0.25]
    (minibatch,) = batch.minibatches
    assert minibatch.tokens == slice(0, 4)
    (micro,) = minibatch.micro_batches
    assert micro.inputs_BT.tolist() == [[1, 2, 11, 12, 13, 14, 15], [1, 2, 0, 0, 0, 0, 0]]
    assert micro.rows_N.tolist() == [0, 0, 0, 1]
    assert micro.positions_N.tolist() == [2, 5, 6, 1]  # where the token is predicted: one before its own place
    assert micro.targets_N.tolist() == [12, 15, 16, 21]
    assert micro.table_N.tolist() == [0, 1, 2, 3]


def test_the_table_is_in_admission_order_whatever_the_order_of_computing() -> None:
    short, long = completion_of(7), completion_of(3, 4, 5)
    batch = laid_out([group_of(short, long), group_of(long, short, group_id=1)])
    assert [[t.tokens for t in group] for group in batch.trajectories] == [
        [slice(0, 1), slice(1, 4)],
        [slice(4, 7), slice(7, 8)],
    ]
    assert batch.table.sequences_N.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    ((micro,),) = (m.micro_batches for m in batch.minibatches)
    assert micro.table_N.tolist() == [1, 2, 3, 4, 5, 6, 0, 7]  # longest first
    assert micro.targets_N.tolist() == [3, 4, 5, 3, 4, 5, 7, 7]


@checks(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(64, 200), st.integers(0, 3), st.integers(0, 2**32))
def test_every_token_is_trained_once_or_masked_once(
    groups: int, count: int, budget: int, max_staleness: int, seed: int
) -> None:
    given = [random_group(seed + i, versions=(0, 1, 3)) for i in range(groups)]
    count = min(count, groups)
    batch = laid_out(given, 3, max_staleness=max_staleness, token_budget=budget, batch_size=groups, minibatches=count)
    completions = [c for g in given for c in g.completions]
    age = Counter(3 - int(v) for c in completions for v in c.versions)
    assert batch.counts.contributing == {a: n for a, n in age.items() if a <= max_staleness}
    assert batch.counts.masked == {a: n for a, n in age.items() if a > max_staleness}

    young = [(c, 3 - c.versions <= max_staleness) for c in completions]
    assert len(batch.table) == batch.counts.contributing.total()
    assert np.array_equal(batch.table.ages_N, np.concatenate([3 - c.versions[y] for c, y in young]))
    assert np.array_equal(batch.table.behaviour_N, np.concatenate([c.logprobs[y] for c, y in young]))
    tokens = np.concatenate([c.token_ids[y] for c, y in young])
    rows: list[int] = []
    for minibatch in batch.minibatches:
        of_minibatch = []
        for micro in minibatch.micro_batches:
            sequences, width = micro.inputs_BT.shape
            assert sequences * width <= budget
            assert np.array_equal(micro.targets_N, tokens[micro.table_N.numpy()])
            of_minibatch += micro.table_N.tolist()
        assert sorted(of_minibatch) == list(range(minibatch.tokens.start, minibatch.tokens.stop))
        rows += sorted(of_minibatch)
    assert rows == list(range(len(batch.table)))


def test_minibatches_hold_whole_groups_in_order() -> None:
    given = [random_group(i) for i in range(5)]
    batch = laid_out(given, batch_size=5, minibatches=2)
    sizes = [sum(g.sampled_tokens for g in part) for part in (given[:3], given[3:])]
    assert [m.tokens for m in batch.minibatches] == [slice(0, sizes[0]), slice(sizes[0], sum(sizes))]


def test_a_sequence_beyond_the_budget_is_alone() -> None:
    long = completion_of(*range(70))
    batch = laid_out([group_of(long, completion_of(7), long)], token_budget=64, max_tokens=128)
    (minibatch,) = batch.minibatches
    assert [tuple(m.inputs_BT.shape) for m in minibatch.micro_batches] == [(1, 71), (1, 71), (1, 2)]


# ── who counts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_completion_without_a_reward_is_no_part_of_the_step() -> None:
    batch = laid_out([group_of(completion_of(3, 4, reward=None), completion_of(5))])
    assert batch.trajectories == ((Trajectory(1.0, slice(0, 1)),),)
    assert batch.counts.contributing == {0: 1}
    assert laid_out([group_of(completion_of(3, reward=None))]).trajectories == ((),)


def test_only_what_the_policy_sampled_for_its_completion_contributes() -> None:
    """Not a token of another role, be it one with a version, nor one without a version, be it of the completion."""
    mixed = completion_of(3, 4, 5, 6, 7)
    mixed.roles[:] = [Role.PROMPT, Role.COMPLETION, Role.ENVIRONMENT, Role.COMPLETION, Role.REFERENCE]
    mixed.versions[3:] = NO_VERSION
    batch = laid_out([group_of(mixed)])
    assert [micro.targets_N.tolist() for micro in batch.minibatches[0].micro_batches] == [[4]]
    assert batch.counts.contributing == {0: 1}


def test_a_completion_wholly_too_old_keeps_its_reward_and_loses_its_tokens() -> None:
    old = completion_of(3, 4, version=0, reward=9.0)
    batch = laid_out([group_of(completion_of(5, version=3), old, completion_of(6, version=3))], version=3)
    assert batch.trajectories == (
        (Trajectory(1.0, slice(0, 1)), Trajectory(9.0, slice(1, 1)), Trajectory(1.0, slice(1, 2))),
    )
    assert (batch.counts.contributing, batch.counts.masked) == ({0: 2}, {3: 2})
    assert batch.table.sequences_N.tolist() == [0, 1]
    assert [m.inputs_BT.shape[0] for m in batch.minibatches[0].micro_batches] == [2]


def test_remax_leaves_out_groups_without_a_greedy_reward() -> None:
    with_it, without = random_group(1, greedy=0.5), random_group(2)
    batch = laid_out([without, with_it], algorithm="remax")
    assert batch.trajectories[0] == ()
    assert [t.greedy for t in batch.trajectories[1]] == [0.5] * 4
    assert len(batch.table) == with_it.sampled_tokens
    assert len(laid_out([without, with_it]).table) == with_it.sampled_tokens + without.sampled_tokens


def test_a_step_without_tokens_has_no_micro_batches() -> None:
    batch = laid_out([random_group(i, rewards=[None]) for i in range(4)], minibatches=2)
    assert len(batch.table) == 0
    assert [m.micro_batches for m in batch.minibatches] == [(), ()]


def test_a_sampled_token_without_log_probability_is_refused() -> None:
    group = random_group(3)
    group.completions[1].logprobs[0] = np.nan
    with pytest.raises(InvalidData, match="group 3"):
        laid_out([group])


# ── reference answers ────────────────────────────────────────────────────────────────────────────────────────────────


def with_answer(
    *reasoning: int, version: int = 3, scored: int = 3, weight: float = 0.25, reward: float | None = 0.25
) -> Completion:
    """Reasoning, then the answer 8 9."""
    found = completion_of(*reasoning, 8, 9, version=version, reward=reward)
    found.roles[-2:] = Role.REFERENCE
    found.versions[-2:] = scored
    found.loss_weights[-2:] = weight
    return found


def test_an_answer_has_rows_of_the_table_and_no_part_in_its_trajectory() -> None:
    batch = laid_out([group_of(with_answer(3, 4), completion_of(5, version=3))], version=3)
    table = batch.table
    assert batch.trajectories == ((Trajectory(0.25, slice(0, 2)), Trajectory(1.0, slice(2, 3))),)
    assert table.answer_N.tolist() == [False, False, True, True, False]
    assert table.sequences_N.tolist() == [0, 0, 1, 1, 2]
    assert table.scales_N.tolist() == pytest.approx([1 / 5, 1 / 5, 1 / 20, 1 / 20, 1 / 5])
    ((micro,),) = (m.micro_batches for m in batch.minibatches)
    assert micro.targets_N.tolist() == [3, 4, 8, 9, 5]
    assert micro.rows_N.tolist() == [0, 0, 0, 0, 1]
    assert micro.table_N.tolist() == [0, 1, 2, 3, 4]
    assert table.of_completions(table.behaviour_N).tolist() == pytest.approx([-0.7] * 3)
    assert table.with_answers(np.array([1.0, 2.0, 3.0]), of_answers=torch.full((5,), 7.0)).tolist() == [1, 2, 7, 7, 3]


def test_an_answer_may_be_all_that_is_left_of_a_completion() -> None:
    """No reasoning; reasoning too old; and an answer that is too old, or weighs nothing, or has no reward."""
    group = group_of(
        with_answer(),
        with_answer(3, version=0),
        with_answer(4, scored=0),
        with_answer(5, weight=0.0),
        with_answer(6, reward=None),
    )
    batch = laid_out([group], version=3)
    assert [t.tokens for t in batch.trajectories[0]] == [slice(0, 0), slice(0, 0), slice(0, 1), slice(1, 2)]
    assert batch.table.answer_N.tolist() == [True] * 4 + [False] * 2
    assert (batch.counts.contributing, batch.counts.masked) == ({0: 6}, {3: 3})
    assert sorted(micro.targets_N.tolist() for micro in batch.minibatches[0].micro_batches) == [[8, 9, 8, 9, 4, 5]]


def test_where_rewards_are_equal_only_answers_are_computed() -> None:
    group = group_of(with_answer(3, 4), with_answer(5, weight=0.0))
    batch = laid_out([group], version=3, algorithm="rloo")
    assert computed(batch) == {0, 1, 2, 3}
    assert has_learning_signal(group)
    assert not has_learning_signal(group_of(with_answer(5, weight=0.0), with_answer(6, weight=0.0)))
    assert not has_learning_signal(group_of(with_answer(3, reward=None), with_answer(6, weight=0.0)))
    assert has_learning_signal(group_of(with_answer(5, weight=0.0), completion_of(6)))


# ── shares ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mean", "shares"),
    [
        ("token", [[1 / 4, 1 / 4, 1 / 4, 1 / 8], [1 / 3, 1 / 3, 1 / 3]]),
        ("sequence", [[1 / 6, 1 / 6, 1 / 6, 1 / 4], [1 / 2, 1 / 4, 1 / 4]]),
        ("constant", [[1 / 48, 1 / 48, 1 / 48, 1 / 96], [1 / 32, 1 / 32, 1 / 32]]),  # 3 and 2 completions of 16
    ],
)
def test_shares_of_a_mean(mean: str, shares: list[list[float]]) -> None:
    """Two minibatches: completions of 3, 1 and 0 young tokens, the 1 of weight ½; completions of 1 and 2."""
    half = completion_of(7, version=3)
    half.loss_weights[:] = 0.5
    first = group_of(completion_of(3, 4, 5, version=3), half, completion_of(6, 6))
    second = group_of(completion_of(8, version=3), completion_of(9, 9, version=3), group_id=1)
    batch = laid_out([first, second], version=3, loss_mean=mean, minibatches=2, batch_size=2)
    for minibatch, expected in zip(batch.minibatches, shares, strict=True):
        assert batch.table.scales_N[minibatch.tokens].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_without_weights_shares_are_those_of_a_mean(mean: str) -> None:
    batch = laid_out([random_group(i) for i in range(4)], loss_mean=mean, minibatches=4)
    for minibatch in batch.minibatches:
        assert batch.table.scales_N[minibatch.tokens].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_the_budget_moves_no_share(mean: str) -> None:
    given = [eventful_group(i) for i in range(4)]
    whole, cut = (laid_out(given, 3, loss_mean=mean, token_budget=budget) for budget in (4096, 64))
    assert len(cut.minibatches[0].micro_batches) > len(whole.minibatches[0].micro_batches)
    assert whole.table.scales_N.tolist() == cut.table.scales_N.tolist()
    assert whole.trajectories == cut.trajectories


# ── groups without a gradient ────────────────────────────────────────────────────────────────────────────────────────


def computed(batch: StepBatch) -> set[int]:
    return {row for m in batch.minibatches for micro in m.micro_batches for row in micro.table_N.tolist()}


@pytest.mark.parametrize("algorithm", ["grpo", "m2po"])
def test_a_group_of_equal_rewards_counts_but_is_not_computed(algorithm: str) -> None:
    alike, differing = random_group(0, rewards=[1.0, 1.0, None]), random_group(1, rewards=[1.0, 0.0])
    batch = laid_out([alike, differing], algorithm=algorithm)
    first = sum(len(c) for c in alike.completions[:2])
    assert computed(batch) == set(range(first, len(batch.table)))
    assert batch.counts.contributing.total() == len(batch.table)
    assert batch.table.scales_N.tolist() == pytest.approx([1 / len(batch.table)] * len(batch.table))
    assert not laid_out([alike], algorithm=algorithm).minibatches[0].micro_batches


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "reinforce_pp"},
        {"algorithm": "ppo", "minibatches": 1},
        {"algorithm": "grpo", "kl_coefficient": 0.1},
    ],
)
def test_it_is_where_something_needs_its_tokens(settings: dict[str, Any]) -> None:
    batch = laid_out([random_group(0, rewards=[1.0, 1.0]), random_group(1, rewards=[1.0, 0.0])], **settings)
    assert computed(batch) == set(range(len(batch.table)))
