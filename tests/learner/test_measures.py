"""Figures of a step against values worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from learner_cases import random_group

from headrace_core.metrics import AgeMetrics
from headrace_learner.batch import AgeCount
from headrace_learner.losses import LossTokens, LossValues
from headrace_learner.measures import TokenLog, summarise


def test_figures_by_age() -> None:
    tokens = LossTokens(
        current_N=torch.zeros(4),
        proximal_N=torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        behaviour_N=torch.tensor([-1.0, -1.0, -3.0, -3.0]),
        advantages_N=torch.ones(4),
        ages_N=torch.tensor([0, 1, 0, 1]),
        rows_N=torch.zeros(4, dtype=torch.int64),
    )
    values = LossValues(
        loss_N=torch.zeros(4),
        importance_N=torch.tensor([1.0, 1.0, 1.0, 3.0]),
        clipped_N=torch.tensor([False, True, False, False]),
        extra={"share": torch.tensor([1.0, 0.0, 0.0, 0.0])},
    )
    log = TokenLog()
    log.add(tokens, values, torch.tensor([1.0, 2.0, 3.0, 6.0]))
    found = log.measure(AgeCount(Counter({0: 2, 1: 2}), Counter({1: 1, 5: 7})))
    assert found.ages[0] == AgeMetrics(2, 0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    # (1 + 3)² / (2 · (1 + 9)) = 0.8; log π_b − log π_prox is 1 for both
    assert found.ages[1] == AgeMetrics(3, 1, effective_sample_size=0.8, clip_share=0.5, behaviour_kl=1.0)
    assert found.ages[5] == AgeMetrics(7, 7, effective_sample_size=0.0, clip_share=0.0, behaviour_kl=0.0)
    assert (found.loss, found.entropy, found.behaviour_kl, found.clip_share) == (3.0, 2.5, 0.5, 0.25)
    assert found.effective_sample_size == pytest.approx(36 / (4 * 12))
    assert found.extra == {"share": 0.25}


def test_a_step_without_tokens_measures_nothing() -> None:
    found = TokenLog().measure(AgeCount(masked=Counter({4: 3})))
    assert (found.loss, found.entropy, found.effective_sample_size) == (0.0, 0.0, 0.0)
    assert found.ages[4].masked == 3


def test_groups_are_summarised_by_their_applicable_rewards() -> None:
    groups = [random_group(0, rewards=[1.0, None, 0.0]), random_group(1, rewards=[1.0, 1.0, None])]
    found = summarise(groups)
    assert found.reward_mean == 0.75
    assert found.reward_std == pytest.approx(0.1875**0.5)
    assert found.components == {"right": 0.75}
    assert found.zero_variance_share == 0.5
    assert found.completions == 6
    assert found.completion_length == pytest.approx(sum(g.sampled_tokens for g in groups) / 6)
