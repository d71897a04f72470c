"""What the ReMax evidence gives its trainer: rewards that repeat, and each baseline in its place."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.remax.rewards import Rewards, greedy_baseline, looking_baseline, no_baseline, rewarded
from headrace_core.types.trajectory import Completion, Group, sampled_completion


def completion(token: int, reward: float) -> Completion:
    return sampled_completion(np.array([token, 1]), np.zeros(2), np.zeros(2, np.int32), "stop", reward)


def group(row: int, token: int = 7, greedy: bool = True) -> Group:
    """Sampled: token, reward 1; greedy: 9, reward 0."""
    sampled = (completion(token, 1.0),)
    return Group(row, 1, row, 0, np.array([3]), sampled, completion(9, 0.0) if greedy else None)


def given(made: Group) -> tuple[float, float]:
    """(the sampled completion's reward, the greedy one's)."""
    assert made.greedy is not None
    assert made.greedy.reward is not None
    assert made.completions[0].reward is not None
    return made.completions[0].reward, made.greedy.reward


def test_an_offset_is_of_the_prompt_and_leaves_remax_alone() -> None:
    plain, offset = Rewards("task"), Rewards("task", offset=5.0)
    made = [given(rewarded(group(row), offset, greedy_baseline, seed=0)) for row in range(400)]
    assert [reward - greedy for reward, greedy in made] == pytest.approx([1.0] * 400)
    assert np.std([reward for reward, _ in made]) == pytest.approx(5.0, rel=0.15)
    assert given(rewarded(group(0), plain, greedy_baseline, seed=0)) == (1.0, 0.0)


@pytest.mark.parametrize("kind", [Rewards("normal"), Rewards("binary", success=0.5)])
def test_a_table_gives_the_same_completion_the_same_reward_and_others_their_own(kind: Rewards) -> None:
    rewards = [given(rewarded(group(row), kind, greedy_baseline, seed=0))[0] for row in range(200)]
    assert rewards == [given(rewarded(group(row), kind, greedy_baseline, seed=0))[0] for row in range(200)]
    for others in (
        [given(rewarded(group(row, token=8), kind, greedy_baseline, seed=0))[0] for row in range(200)],
        [given(rewarded(group(row), kind, greedy_baseline, seed=1))[0] for row in range(200)],
    ):
        assert abs(np.corrcoef(rewards, others)[0, 1]) < 0.25
    expected = (0.5, 0.5) if kind.kind == "binary" else (0.0, 1.0)
    assert (np.mean(rewards), np.std(rewards)) == pytest.approx(expected, abs=0.2)


def test_a_baseline_stands_in_the_greedy_completions_place() -> None:
    offset = Rewards("task", offset=5.0)
    sampled, greedy = given(rewarded(group(4), offset, greedy_baseline, seed=0))
    assert given(rewarded(group(4), offset, no_baseline, seed=0)) == (sampled, 0.0)
    assert given(rewarded(group(4), offset, looking_baseline, seed=0)) == (sampled, (sampled + greedy) / 2)
    assert rewarded(group(4, greedy=False), offset, greedy_baseline, seed=0).greedy is None
