"""Figures of a step against values worked out by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from headrace_core.protocols.grader_check import MAX_SCORE
from headrace_core.types.metrics import AgeMetrics, Tally
from headrace_core.types.reward_statistics import mean
from headrace_learner.algorithms.advantages import AdvantageInputs, Trajectory
from headrace_learner.algorithms.batch import Table
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.algorithms.token_selection import AgeCount, rewards_differ
from headrace_learner.distributed.process_group import SingleProcess
from headrace_learner.training.step_metrics import MISMATCH, StepLog, summarise

from .cases import answered, random_group


def a_table(behaviour: list[float], ages: list[int], fresh: list[bool] | None = None) -> Table:
    zeros = torch.zeros(len(ages))
    fresh_N = zeros > 0 if fresh is None else torch.tensor(fresh)
    ages_N = torch.tensor(ages, dtype=torch.int64)
    numbers_N, none_N = zeros.long(), zeros > 0
    return Table(torch.tensor(behaviour), ages_N, numbers_N, numbers_N, none_N, zeros, fresh_N, zeros)


def test_figures_by_age() -> None:
    """Noted in two micro-batches, out of order."""
    log = StepLog(a_table([-1.0, -1.0, -3.0, -3.0], [0, 1, 0, 1]), SingleProcess())
    log.record(
        torch.tensor([3, 0]),
        loss=torch.tensor([6.0, 1.0]),
        proximal=torch.tensor([-4.0, -1.0]),
        importance=torch.tensor([3.0, 1.0]),
        clipped=torch.tensor([False, False]),
        share=torch.tensor([False, True]),
    )
    log.record(
        torch.tensor([1, 2]),
        loss=torch.tensor([2.0, 3.0]),
        proximal=torch.tensor([-2.0, -3.0]),
        importance=torch.tensor([1.0, 1.0]),
        clipped=torch.tensor([True, False]),
        share=torch.tensor([False, False]),
    )
    found = log.measure(AgeCount(Counter({0: 2, 1: 2}), Counter({1: 1, 5: 7})))
    assert found.ages[0] == AgeMetrics(2, 0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    # (1 + 3)² / (2 · (1 + 9)) = 0.8; log π_b − log π_prox is 1 for both
    assert found.ages[1] == AgeMetrics(3, 1, effective_sample_size=0.8, clip_share=0.5, behaviour_kl=1.0)
    assert found.ages[5] == AgeMetrics(7, 7, effective_sample_size=0.0, clip_share=0.0, behaviour_kl=0.0)
    assert found.loss == pytest.approx(12.0)
    assert (found.entropy, found.behaviour_kl, found.clip_share) == (2.5, 0.5, 0.25)
    assert found.effective_sample_size == pytest.approx(36 / (4 * 12))
    assert found.extra == {"share": 0.25}


def test_no_gradient_is_kept() -> None:
    log = StepLog(a_table([-1.0], [0]), SingleProcess())
    one = torch.ones(1, requires_grad=True)
    log.record(torch.tensor([0]), loss=2 * one, proximal=-one, importance=one, clipped=one > 2)
    assert log.measure(AgeCount(Counter({0: 1}))).loss == 2.0


def test_tokens_all_masked_by_their_weight_are_no_sample() -> None:
    log = StepLog(a_table([-1.0, -1.0], [0, 0]), SingleProcess())
    none = torch.zeros(2)
    log.record(torch.arange(2), loss=none, proximal=none, importance=none, clipped=none > 0)
    assert log.measure(AgeCount(Counter({0: 2}))).effective_sample_size == 0.0


def test_a_step_without_tokens_measures_nothing() -> None:
    found = StepLog(a_table([], []), SingleProcess()).measure(AgeCount(masked=Counter({4: 3})))
    assert (found.loss, found.entropy, found.effective_sample_size, found.extra) == (0.0, 0.0, 0.0, {})
    assert found.ages == {4: AgeMetrics(3, 3, effective_sample_size=0.0, clip_share=0.0, behaviour_kl=0.0)}


def test_answers_have_a_figure_of_their_own_and_a_part_in_the_loss() -> None:
    table = a_table([-1.0, -1.0, -3.0], [0, 0, 0])
    table.answer_N[1:] = True
    log = StepLog(table, SingleProcess())
    log.record(
        torch.arange(3),
        loss=torch.tensor([1.0, 2.0, 4.0]),
        proximal=torch.tensor([-2.0, -3.0, -6.0]),
        importance=torch.tensor([1.0, 5.0, 0.0]),
        clipped=torch.tensor([False, True, True]),
        share=torch.tensor([False, True, True]),
    )
    found = log.measure(AgeCount(Counter({0: 3})))
    assert (found.loss, found.entropy, found.effective_sample_size, found.clip_share) == (7.0, 2.0, 1.0, 0.0)
    assert found.ages[0] == AgeMetrics(3, 0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=1.0)
    assert found.extra == {"share": 0.0, "answer_logprob": -4.5}


def test_groups_are_summarised_by_their_applicable_rewards() -> None:
    groups = [random_group(0, rewards=[1.0, None, 0.0]), random_group(1, rewards=[1.0, 1.0, None])]
    found = summarise(groups)
    assert found.reward_mean == 0.75
    assert found.reward_std == pytest.approx(0.1875**0.5)
    assert found.components == {"right": 0.75}
    assert found.zero_variance_share == 0.5
    assert found.completions == 6
    assert found.completion_length == pytest.approx(sum(g.sampled_tokens for g in groups) / 6)
    assert found.truncated_share == 0.0
    assert summarise([answered(group) for group in groups]) == found


@pytest.mark.parametrize(
    ("rewards", "differ"),
    [([1.0, 0.0], True), ([1.0, 1.0, 0.5], True), ([1.0, 1.0], False), ([1.0, None], False), ([None, None], False)],
)
def test_groups_that_a_baseline_can_tell_apart(rewards: list[float | None], differ: bool) -> None:
    assert rewards_differ(random_group(0, rewards=rewards)) is differ


def test_of_no_reward_there_is_no_mean() -> None:
    found = summarise([random_group(0, rewards=[None, None, None]), random_group(1, rewards=[None])])
    assert (found.reward_mean, found.reward_std, found.zero_variance_share) == (None, None, None)
    alone = summarise([random_group(0, rewards=[1.0, None]), random_group(1, rewards=[0.0, 0.0])])
    assert (alone.reward_mean, alone.zero_variance_share) == (1 / 3, 1.0), "one reward is compared with none"


def test_the_mismatch_is_of_fresh_completions_before_the_first_update() -> None:
    """exp(−d) − 1 + d of two tokens; the third is of a completion begun by an older policy, the fourth comes later."""
    log = StepLog(a_table([-1.0, -2.0, -3.0, -4.0], [0, 0, 0, 0], [True, True, False, True]), SingleProcess())
    log.record_initial(torch.tensor([0, 1, 2]), torch.tensor([-1.5, -1.9, -9.0]))
    log.record(torch.tensor([0, 1, 2, 3]), importance=torch.ones(4), proximal=torch.zeros(4), clipped=torch.zeros(4))
    found = log.measure(AgeCount(Counter({0: 4}))).extra
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(0.1) - 1 - 0.1]
    assert found == {MISMATCH: pytest.approx(sum(expected) / 2, rel=1e-5)}


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_figures_and_advantages_of_the_largest_scores_are_finite(algorithm: str) -> None:
    rewards = [MAX_SCORE, -MAX_SCORE, MAX_SCORE, 0.0]
    found = summarise([random_group(0, rewards=rewards)])
    assert found.reward_mean == MAX_SCORE / 4
    assert found.reward_std == pytest.approx(MAX_SCORE * math.sqrt(11) / 4)
    trajectories = [Trajectory(reward, slice(n, n + 1)) for n, reward in enumerate(rewards)]
    inputs = AdvantageInputs([trajectories], np.zeros(4))
    advantages = IMPLEMENTATIONS[algorithm].advantages(inputs).advantages_N.astype(np.float32)
    assert np.isfinite(advantages**2).all()
    tally = Tally()
    for _ in range(8):
        tally = tally.with_group(rewards)
    shown = mean(tally)
    assert shown is not None
    assert math.isfinite(shown.low)
