"""Advantages against values worked out by hand, and against sums written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace_learner.algorithms.advantages import (
    AdvantageFunction,
    AdvantageInputs,
    Column,
    Trajectory,
    dr_grpo,
    gae,
    grpo,
    reinforce_pp,
    remax,
    rloo,
)

OF_GROUPS = [grpo, dr_grpo, rloo]
REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def earned(
    *groups: Sequence[tuple[float, int]],
    penalties: Sequence[float] | npt.NDArray[np.float64] | None = None,
    values: Sequence[float] | npt.NDArray[np.float64] | None = None,
    greedy: float | None = None,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    clip: float | None = None,
) -> AdvantageInputs:
    """From groups of (reward, number of contributing tokens)."""
    made, first = [], 0
    for group in groups:
        trajectories = []
        for reward, length in group:
            trajectories.append(Trajectory(reward, slice(first, first + length), greedy))
            first += length
        made.append(trajectories)
    penalties_N = np.zeros(first) if penalties is None else np.array(penalties, np.float64)
    assert len(penalties_N) == first
    return AdvantageInputs(
        groups=made,
        penalties_N=penalties_N,
        values_N=None if values is None else np.array(values),
        gamma=gamma,
        gae_lambda=gae_lambda,
        clip=clip,
    )


def normalised(values: Sequence[float] | Column) -> list[float]:
    return [(v - fmean(values)) / pstdev(values) for v in values]


# ── baselines of the group ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("function", "advantages"),
    [
        (grpo, [0.0, -1 / 1.5**0.5, -1 / 1.5**0.5, 2 / 1.5**0.5]),  # mean 1, variance (0 + 1 + 1 + 4)/4 = 1.5
        (dr_grpo, [0.0, -1.0, -1.0, 2.0]),
        (rloo, [0.0, -4 / 3, -4 / 3, 8 / 3]),  # 0 − (1 + 0 + 3)/3 and 3 − (1 + 0 + 0)/3
    ],
)
def test_every_token_has_its_completions_advantage(function: AdvantageFunction, advantages: list[float]) -> None:
    found = function(earned([(1.0, 2), (0.0, 1), (0.0, 3), (3.0, 2)]))
    assert found.advantages_N == pytest.approx(np.repeat(advantages, [2, 1, 3, 2]), abs=1e-5)
    assert found.returns_N is None


@pytest.mark.parametrize("function", OF_GROUPS)
def test_groups_do_not_see_each_other(function: AdvantageFunction) -> None:
    one, other = [(1.0, 2), (0.0, 1)], [(7.0, 1), (3.0, 2), (4.0, 1)]
    both = function(earned(one, [], other)).advantages_N
    assert both[:3] == pytest.approx(function(earned(one)).advantages_N)
    assert both[3:] == pytest.approx(function(earned(other)).advantages_N)


@pytest.mark.parametrize("function", OF_GROUPS)
def test_penalties_are_subtracted_after_normalisation(function: AdvantageFunction) -> None:
    """Their sums over the completions, 0.75, -0.5 and 1, less their mean, or less the mean of the others."""
    rewards = [(1.0, 2), (0.0, 1), (2.0, 2)]
    fined = function(earned(rewards, penalties=[0.25, 0.5, -0.5, 0.0, 1.0])).advantages_N
    sums = np.array([0.75, -0.5, 1.0])
    apart = (sums - sums.mean()) * (1.5 if function is rloo else 1)
    assert fined == pytest.approx(function(earned(rewards)).advantages_N - np.repeat(apart, [2, 1, 2]))


@pytest.mark.parametrize("function", [dr_grpo, rloo])
def test_without_normalisation_a_score_is_the_reward_minus_all_penalties(function: AdvantageFunction) -> None:
    fined = function(earned([(1.0, 2), (0.0, 1), (2.0, 2)], penalties=[0.25, 0.5, -0.5, 0.0, 1.0]))
    plain = function(earned([(0.25, 2), (0.5, 1), (1.0, 2)]))
    assert fined.advantages_N == pytest.approx(plain.advantages_N)
    assert fined.advantages_N.any()


@pytest.mark.parametrize("function", OF_GROUPS)
def test_a_completion_without_tokens_counts_in_the_baseline(function: AdvantageFunction) -> None:
    counted = function(earned([(1.0, 2), (0.0, 1), (5.0, 0)])).advantages_N
    with_tokens = function(earned([(1.0, 2), (0.0, 1), (5.0, 1)])).advantages_N
    alone = function(earned([(1.0, 2), (0.0, 1)])).advantages_N
    assert counted == pytest.approx(with_tokens[:3])
    assert counted[0] < 0 < alone[0]


@pytest.mark.parametrize("function", OF_GROUPS)
@pytest.mark.parametrize("rewards", [[0.5, 0.5, 0.5], [1.0]])
def test_equal_rewards_teach_nothing(function: AdvantageFunction, rewards: list[float]) -> None:
    found = function(earned([(reward, 2) for reward in rewards]))
    assert found.advantages_N.tolist() == [0.0] * 2 * len(rewards)


@pytest.mark.parametrize("function", [*OF_GROUPS, remax, reinforce_pp, gae])
@pytest.mark.parametrize("groups", [[], [[]], [[(1.0, 0)]]])
def test_without_tokens_there_is_nothing(function: AdvantageFunction, groups: list[list[tuple[float, int]]]) -> None:
    found = function(earned(*groups, values=[], greedy=0.0))
    assert len(found.advantages_N) == 0


@checks(deadline=None, derandomize=True)
@given(REWARDS)
def test_rloo_leaves_each_one_out(rewards: list[float]) -> None:
    found = rloo(earned([(reward, 1) for reward in rewards])).advantages_N
    for i, reward in enumerate(rewards):
        assert found[i] == pytest.approx(reward - fmean(rewards[:i] + rewards[i + 1 :]), abs=1e-9)


@checks(deadline=None, derandomize=True)
@given(REWARDS, st.floats(-5, 5), st.floats(0.1, 10))
def test_a_shift_of_all_rewards_changes_nothing_and_a_scale_only_the_size(
    rewards: list[float], shift: float, scale: float
) -> None:
    def of(function: AdvantageFunction, given: list[float]) -> Column:
        return function(earned([(reward, 1) for reward in given])).advantages_N

    other = [scale * reward + shift for reward in rewards]
    for function in (dr_grpo, rloo):
        assert of(function, other) == pytest.approx(scale * of(function, rewards), abs=1e-9)
    if pstdev(rewards) > 0.01:
        assert of(grpo, other) == pytest.approx(of(grpo, rewards), rel=1e-2)
        assert of(grpo, rewards).std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("function", OF_GROUPS)
def test_advantages_are_clamped(function: AdvantageFunction) -> None:
    given = [(1.0, 1), (0.0, 1), (9.0, 1)]
    free, clamped = function(earned(given)), function(earned(given, clip=0.5))
    assert clamped.advantages_N == pytest.approx(np.clip(free.advantages_N, -0.5, 0.5))
    assert clamped.advantages_N.max() == 0.5


# ── ReMax ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_remax_compares_with_the_greedy_completion() -> None:
    found = remax(earned([(1.0, 2), (0.0, 1)], [(7.0, 1)], greedy=0.25))
    assert found.advantages_N.tolist() == [0.75, 0.75, -0.25, 6.75]


def test_remax_clamps_the_difference_but_no_penalty() -> None:
    """The penalty of a token and of all after it, not of those before; clamped: 7 − 0.25 and −9 − 0.25, to ± 5."""
    found = remax(earned([(7.0, 3), (-9.0, 1)], penalties=[0.1, 0.2, 0.4, 8.0], greedy=0.25, clip=5.0))
    assert found.advantages_N == pytest.approx([5 - 0.7, 5 - 0.6, 5 - 0.4, -5 - 8.0])


def test_remax_discounts_penalties() -> None:
    found = remax(earned([(1.0, 3)], penalties=[0.1, 0.2, 0.4], greedy=0.0, gamma=0.5))
    assert found.advantages_N == pytest.approx([1 - (0.1 + 0.1 + 0.1), 1 - (0.2 + 0.2), 1 - 0.4])


def test_remax_refuses_a_group_without_a_greedy_reward() -> None:
    with pytest.raises(ValueError, match="greedy completion"):
        remax(earned([(1.0, 2)]))


# ── returns and values ───────────────────────────────────────────────────────────────────────────────────────────────


def test_reinforce_pp_normalises_rewards_to_go_over_the_whole_batch() -> None:
    """The reward comes with the last token; across groups, each token counts once. The penalties to go have mean ½."""
    given = [(1.0, 2), (0.0, 1)], [(4.0, 3)]
    found = reinforce_pp(earned(*given, penalties=[0.5, 0, -0.5, 1, 1, 1])).advantages_N
    to_go = np.array([0.5, 0.0, -0.5, 3.0, 2.0, 1.0])
    assert found == pytest.approx(np.array(normalised([1.0, 1.0, 0.0, 4.0, 4.0, 4.0])) - (to_go - 1.0), abs=1e-5)


def test_reinforce_pp_discounts_and_clamps_rewards() -> None:
    rewards, to_go = normalised([0.25, 0.5, 1.0, -1.0]), np.array([0.4 + 0.1, 0.2, 0.0, 0.0])
    given = [(1.0, 3), (-1.0, 1)]
    charged = to_go - to_go.mean()
    found = reinforce_pp(earned(given, penalties=[0.4, 0.2, 0, 0], gamma=0.5))
    assert found.advantages_N == pytest.approx(rewards - charged, abs=1e-5)
    clamped = reinforce_pp(earned(given, penalties=[0.4, 0.2, 0, 0], gamma=0.5, clip=0.9))
    assert clamped.advantages_N == pytest.approx(np.clip(rewards, -0.9, 0.9) - charged, abs=1e-5)


@checks(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**32), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_is_the_double_sum(seed: int, gamma: float, gae_lambda: float) -> None:
    """A_t = Σ_k (γλ)^k·δ_{t+k}, δ_t = r_t + γ·V_{t+1} − V_t, within each completion, over the batch; less penalties."""
    rng = np.random.default_rng(seed)
    lengths = [3, 1, 0, 5, 2]
    rewards, size = rng.normal(size=5), sum(lengths)
    penalties, values = rng.normal(size=size), rng.normal(size=size)
    raw, to_go, first = [], [], 0
    for reward, length in zip(rewards, lengths, strict=True):
        rows = range(first, first + length)
        r = [reward if n == rows[-1] else 0.0 for n in rows]
        to_go += [sum(gamma ** (k - n) * penalties[k] for k in range(n, rows.stop)) for n in rows]
        v = [*(values[n] for n in rows), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        raw += [sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
        first += length
    pairs = [(float(r), n) for r, n in zip(rewards, lengths, strict=True)]
    given = earned(pairs[:3], pairs[3:], penalties=penalties, values=values, gamma=gamma, gae_lambda=gae_lambda)
    found = gae(given)
    assert found.returns_N is not None
    assert found.returns_N == pytest.approx(np.array(raw) + values)
    charged = np.array(to_go) - fmean(to_go)
    assert found.advantages_N == pytest.approx(np.array(normalised(raw)) - charged, abs=1e-4)


def test_with_lambda_1_the_target_is_the_return() -> None:
    found = gae(earned([(1.0, 3), (2.0, 1)], values=[0.3, -0.2, 0.9, 5.0]))
    assert found.returns_N == pytest.approx(np.array([1.0, 1.0, 1.0, 2.0]))


def test_gae_goes_on_where_a_completion_was_cut_off() -> None:
    """δ of the last token of the first is 1 + ½·4 − 0.5, that of the second, which ended, 2 − 1."""
    given = replace(earned([(1.0, 2), (2.0, 1)], values=[0.5, 0.5, 1.0], gamma=0.5), after_K=np.array([4.0, 0.0]))
    found = gae(given)
    assert found.returns_N == pytest.approx(np.array([1.5, 3.0, 2.0]))
    assert found.advantages_N == pytest.approx(normalised([1.0, 2.5, 1.0]), abs=1e-5)


def test_gae_clamps_advantages_and_no_targets() -> None:
    given = [(1.0, 2), (9.0, 1)]
    free, clamped = (gae(earned(given, values=[0.0, 0.0, 0.0], clip=clip)) for clip in (None, 0.6))
    assert clamped.advantages_N == pytest.approx(np.clip(free.advantages_N, -0.6, 0.6))
    assert free.returns_N is not None
    assert clamped.returns_N == pytest.approx(free.returns_N)


def test_gae_refuses_to_do_without_a_critic() -> None:
    with pytest.raises(ValueError, match="critic"):
        gae(earned([(1.0, 2)]))


@pytest.mark.parametrize("function", [*OF_GROUPS, remax, reinforce_pp, gae])
def test_what_was_earned_is_left_as_it_is(function: AdvantageFunction) -> None:
    given = earned([(1.0, 2), (0.0, 1)], penalties=[0.1, 0.2, 0.3], values=[0.4, 0.5, 0.6], greedy=0.0)
    function(given)
    assert given.penalties_N.tolist() == [0.1, 0.2, 0.3]
    assert given.values_N is not None
    assert given.values_N.tolist() == [0.4, 0.5, 0.6]
