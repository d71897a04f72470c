"""How a reward follows from a reference answer's likelihood: by hand, and weights by differences."""

from __future__ import annotations

import math

import pytest

from headrace_core.types.likelihood import Kind, Likelihood

LOGS = [math.log(0.5), math.log(0.2), math.log(0.8)]


@pytest.mark.parametrize(
    ("likelihood", "value"),
    [
        (Likelihood("product"), 0.08),
        (Likelihood("log"), math.log(0.08)),
        (Likelihood("log", low=-2.0), -2.0),
        (Likelihood("mean"), 0.5),
        (Likelihood("mean", offset=0.2, low=0.0, high=1.0), 0.3),
        (Likelihood("mean", offset=0.6, low=0.0, high=1.0), 0.0),
        (Likelihood("mean", offset=-0.7, low=0.0, high=1.0), 1.0),
    ],
)
def test_by_hand(likelihood: Likelihood, value: float) -> None:
    assert likelihood.value(LOGS) == pytest.approx(value)


@pytest.mark.parametrize("kind", ["product", "log"])
def test_an_answers_weight_is_the_rewards_derivative_by_each_log_probability(kind: Kind) -> None:
    likelihood, step = Likelihood(kind, coefficient=-0.7), 1e-6
    for t in range(len(LOGS)):
        up, down = ([log + sign * step * (i == t) for i, log in enumerate(LOGS)] for sign in (1, -1))
        slope = -0.7 * (likelihood.value(up) - likelihood.value(down)) / (2 * step)
        assert likelihood.answer_weight(LOGS) == pytest.approx(slope, rel=1e-6)
    assert likelihood.trains_the_answer


def test_a_mean_of_probabilities_trains_no_answer_and_neither_does_a_reward_without_it() -> None:
    assert Likelihood("mean").answer_weight(LOGS) == 0
    assert [Likelihood("mean").trains_the_answer, Likelihood("log", coefficient=0.0).trains_the_answer] == [
        False,
        False,
    ]


def test_rewards_of_rewards_multiply_their_slopes() -> None:
    found = Likelihood("product", coefficient=0.5).within(-2.0, True).within(3.0, True)
    assert (found.coefficient, found.affine) == (-3.0, True)
    assert not found.within(1.0, False).within(2.0, True).affine
