"""Advantages against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from learner_cases import random_group

from headrace_learner.advantages import grpo


def test_grpo_normalises_within_the_group() -> None:
    group = random_group(0, rewards=[1.0, 0.0, 0.0, 3.0])  # mean 1, variance (0 + 1 + 1 + 4)/4 = 1.5
    found = grpo(group)
    expected = [0.0, -1 / np.sqrt(1.5), -1 / np.sqrt(1.5), 2 / np.sqrt(1.5)]
    for completion, advantage, value in zip(group.completions, found, expected, strict=True):
        assert advantage is not None
        assert advantage.shape == (len(completion),)
        assert advantage == pytest.approx(value, abs=1e-5)


def test_a_reward_that_is_not_applicable_counts_in_no_mean() -> None:
    found = grpo(random_group(0, rewards=[1.0, None, 0.0]))
    assert found[1] is None
    assert found[0] is not None
    assert found[2] is not None
    assert (found[0][0], found[2][0]) == pytest.approx((1.0, -1.0), abs=1e-5)


@pytest.mark.parametrize("rewards", [[0.5, 0.5, 0.5], [1.0], [1.0, None]])
def test_equal_rewards_teach_nothing(rewards: list[float | None]) -> None:
    for advantage in grpo(random_group(0, rewards=rewards)):
        assert advantage is None or not advantage.any()


def test_a_group_without_any_reward_is_left_out() -> None:
    assert grpo(random_group(0, rewards=[None, None])) == (None, None)
