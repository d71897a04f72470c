"""The adder trained by the service's graders: graded as in a job, and slopes that the trainer's gradients have too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evidence.noisy_rewards import slopes as _noise_slopes
from evidence.noisy_rewards.slopes import Slopes, debiased, noisy
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_lab.training.graded_training import RIGHT, GradedRun, carrying, of_rows
from headrace_lab.training.lagged_training import adder


def run(grader: dict[str, object]) -> GradedRun:
    small = {"batch_size": 6, "group_size": 4, "max_tokens": 48, "max_context": 64}
    return GradedRun(Hyperparameters.model_validate(small), grader, rows=carrying)


def rewards(groups: list[Group]) -> list[list[float]]:
    """Of completions that all have one."""
    found = [[c.reward for c in group.completions if c.reward is not None] for group in groups]
    assert [len(of_group) for of_group in found] == [len(group.completions) for group in groups]
    return found


def test_the_grader_of_right_answers_is_the_demos_reward() -> None:
    """`GradedRun` grades what `LaggedRun` did, by the adder's own function."""
    graded = run(RIGHT)
    groups = super(GradedRun, graded).groups()
    assert 0 < sum(reward for group in rewards(groups) for reward in group) < 24
    assert rewards(graded.graded(groups)) == rewards(groups)


def test_a_question_is_flipped_as_a_whole_and_held_out_rows_never_are() -> None:
    flipped = run(noisy(0.5, seed=3))
    groups = flipped.groups()
    signs = [{c.reward == c.components["clean"] for c in group.completions} for group in groups]
    assert {True} in signs
    assert {False} in signs
    assert all(len(sign) == 1 for sign in signs)
    assert flipped.accuracy() == run(RIGHT).accuracy()


def test_rows_with_a_carry_for_training_and_held_out(tmp_path: Path) -> None:
    task = of_rows(adder(), carrying, tmp_path)
    for file, whole in ((task.training_file, 3000), (task.validation_file, 256)):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert 0.4 * whole < len(rows) < 0.6 * whole
        assert all(row["carry"] for row in rows)


@pytest.fixture(scope="module")
def slopes() -> Slopes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_noise_slopes.ESTIMATOR, "batch_size", 24)
        return Slopes(seed=0)


def test_a_slope_is_that_of_the_trainers_own_gradients(slopes: Slopes) -> None:
    def gradient(groups: list[Group]) -> torch.Tensor:
        slopes.run.trainer.step(groups, version=0)
        return torch.cat([p.grad.flatten() for p in slopes.run.trainer.policy.model.parameters() if p.grad is not None])

    flips = noisy(0.3, seed=1)
    clean, flipped = gradient(slopes.clean), gradient(slopes.regraded(flips))
    expected = float(flipped @ clean / (clean @ clean))
    assert expected < 0.9, "these flips change the gradient"
    assert slopes.of([flips])["dr_grpo"] == pytest.approx(expected, abs=0.01)


def test_slopes_without_noise_and_with_every_reward_flipped(slopes: Slopes) -> None:
    assert set(slopes.of([noisy(0.0, seed=0)]).values()) == {1.0}
    assert list(slopes.of([noisy(1.0, seed=0)]).values()) == pytest.approx([-1.0] * 3)


def test_debiasing_multiplies_the_slope_where_no_deviation_divides_it_out(slopes: Slopes) -> None:
    biased, unbiased = slopes.of([noisy(0.2, seed=5)]), slopes.of([debiased(0.2, seed=5)])
    assert unbiased["dr_grpo"] == pytest.approx(biased["dr_grpo"] / 0.6)
    assert unbiased["grpo"] == pytest.approx(biased["grpo"], abs=1e-4)
