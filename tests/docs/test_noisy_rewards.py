"""The how-to of noisy rewards: what it says that `debias` does, and does not, is so."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headrace_core.protocols.grader_check import Score
from headrace_learner.algorithms.advantages import AdvantageInputs, Trajectory, dr_grpo, grpo
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import build

from .test_docs import DOCS, blocks

PAGE = DOCS / "how-to" / "noisy-rewards.md"
DRAWS = 3000
TEXTS = ("<answer> 93 </answer>", "93", "<answer> 8 </answer>", "8")
"""Right and wrong, in form and not."""


def recipe() -> dict[str, Any]:
    (found,) = [value for text in blocks(PAGE, "json") if (value := json.loads(text))["type"] == "multi"]
    return found


def doubtful(debiased: bool, seed: int = 0) -> dict[str, Any]:
    """The recipe, its heuristic flipped at the rates that it undoes; or the same without its `debias`."""
    grader = recipe()
    answer = grader["graders"]["answer"]
    noise = {"type": "noisy", "name": "noise", "flip": answer["flip"], "per": "completion", "seed": seed}
    flipped = noise | {"grader": answer["grader"]}
    grader["graders"]["answer"] = answer | {"grader": flipped} if debiased else flipped
    return grader


async def scored(grader: dict[str, Any], texts: tuple[str, ...], draws: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[draws, texts]"""
    reward = build(grader)
    found = []
    for group in range(draws):
        samples = [Sample(text, {"answer": "93"}, draw=SampleKey(group, n)) for n, text in enumerate(texts)]
        outcomes = await reward.score(samples)
        found.append([outcome.value for outcome in outcomes if isinstance(outcome, Score)])
    return np.array(found)


async def test_the_recipe_gives_each_part_its_weight_back() -> None:
    meant = np.array([1.3, 1.0, 0.3, 0.0])
    debiased = await scored(doubtful(debiased=True), TEXTS, DRAWS)
    error = debiased.std(axis=0) / DRAWS**0.5
    assert np.all(abs(debiased.mean(axis=0) - meant) < 4 * error)
    assert np.all(error < 0.02)
    plain = (await scored(doubtful(debiased=False), TEXTS, DRAWS)).mean(axis=0)
    answer, form = (plain[0] - plain[2] + plain[1] - plain[3]) / 2, (plain[0] - plain[1] + plain[2] - plain[3]) / 2
    assert form / answer == pytest.approx(0.43, abs=0.02), "as the page says"


def advantages(function: Any, rewards: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    group = [Trajectory(reward, slice(n, n + 1)) for n, reward in enumerate(rewards)]
    return function(AdvantageInputs([group], np.zeros(len(rewards)))).advantages_N


async def test_around_the_whole_reward_it_changes_no_advantage_of_grpo_and_in_the_recipe_it_does() -> None:
    part = recipe()["graders"]["answer"]
    alone = {debiased: part if debiased else part["grader"] for debiased in (True, False)}
    for seed in range(20):
        chosen = tuple(np.random.default_rng(seed).choice(TEXTS, 8))
        with_debias, without = [(await scored(alone[d], chosen, 1))[0] for d in (True, False)]
        assert advantages(grpo, list(with_debias)) == pytest.approx(advantages(grpo, list(without)), abs=1e-5)
        assert advantages(dr_grpo, list(with_debias)) == pytest.approx(advantages(dr_grpo, list(without)) / 0.7)
    both = [(await scored(doubtful(d), TEXTS, 1))[0] for d in (True, False)]
    assert abs(advantages(grpo, list(both[0])) - advantages(grpo, list(both[1]))).max() > 0.05
