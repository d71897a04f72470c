"""Which token is in which micro-batch, and in none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import random_group

from headrace_core.errors import InvalidData
from headrace_core.trajectory import NO_VERSION, Completion, Group, Role
from headrace_learner.advantages import grpo
from headrace_learner.batch import minibatches


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
    second = Completion(
        token_ids=np.array([21], np.int32),
        logprobs=np.array([-0.7], np.float32),
        versions=np.array([6], np.int32),
        roles=np.array([Role.COMPLETION], np.uint8),
        loss_weights=np.ones(1, np.float32),
        finish_reason="length",
        reward=0.0,
    )
    return Group(0, 1, 0, 3, np.array([1, 2], np.int32), (first, second))


def test_every_field_of_a_small_batch() -> None:
    (batch,), counts = minibatches([multi_turn()], grpo, version=6, max_staleness=2, count=1, token_budget=64)
    assert (counts.contributing, counts.masked) == (Counter({2: 1, 1: 1, 0: 2}), Counter({3: 1}))
    assert batch.tokens == 4
    (micro,) = batch.micro_batches
    assert micro.inputs_BT.tolist() == [[1, 2, 11, 12, 13, 14, 15], [1, 2, 0, 0, 0, 0, 0]]
    assert micro.rows_N.tolist() == [0, 0, 0, 1]
    assert micro.positions_N.tolist() == [2, 5, 6, 1]  # where the token is predicted: one before its own place
    assert micro.targets_N.tolist() == [12, 15, 16, 21]
    assert micro.behaviour_N.tolist() == pytest.approx([-0.2, -0.5, -0.6, -0.7])
    assert micro.weights_N.tolist() == [1, 0.5, 1, 1]
    assert micro.ages_N.tolist() == [2, 1, 0, 0]
    assert micro.advantages_N.tolist() == pytest.approx([1, 1, 1, -1], abs=1e-5)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(20, 200), st.integers(0, 3), st.integers(0, 2**32))
def test_every_token_is_trained_once_or_masked_once(
    groups: int, count: int, budget: int, max_staleness: int, seed: int
) -> None:
    given = [random_group(seed + i, versions=(0, 1, 3)) for i in range(groups)]
    batches, counts = minibatches(given, grpo, 3, max_staleness, min(count, groups), budget)
    age = Counter(3 - int(v) for g in given for c in g.completions for v in c.versions)
    assert counts.contributing == {a: n for a, n in age.items() if a <= max_staleness}
    assert counts.masked == {a: n for a, n in age.items() if a > max_staleness}
    assert sum(b.tokens for b in batches) == counts.contributing.total()
    for batch in batches:
        assert sum(len(m.targets_N) for m in batch.micro_batches) == batch.tokens
        for micro in batch.micro_batches:
            rows, width = micro.inputs_BT.shape
            assert rows * width <= budget or rows == 1
            assert not (micro.ages_N > max_staleness).any()


def test_minibatches_hold_whole_groups_in_order() -> None:
    given = [random_group(i) for i in range(5)]
    batches, _ = minibatches(given, grpo, 0, 0, count=2, token_budget=4096)
    assert [b.tokens for b in batches] == [sum(g.sampled_tokens for g in part) for part in (given[:3], given[3:])]


def test_a_sampled_token_without_log_probability_is_refused() -> None:
    group = random_group(3)
    group.completions[1].logprobs[0] = np.nan
    with pytest.raises(InvalidData, match="group 3"):
        minibatches([group], grpo, 0, 0, count=1, token_budget=64)
