"""The statistics of many gradients: against plain ones, and against gradients of a known mean."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_lab.training.gradient_statistics import gram, interval, mean_z, squared_mean, squared_mean_error, variance

SAMPLES, PARAMETERS = 60, 500


def gradients(seed: int, mean: float = 0.0) -> np.ndarray:
    """Of unequal variances, with `mean` in every entry."""
    rng = np.random.default_rng(seed)
    scales = rng.exponential(size=PARAMETERS)
    return (mean + scales * rng.standard_normal((SAMPLES, PARAMETERS))).astype(np.float32)


def test_variance_is_the_sum_of_the_entries_variances() -> None:
    g = gradients(0, mean=0.3)
    assert variance(gram(g)) == pytest.approx(g.var(0, ddof=1).sum(), rel=1e-4)


def test_the_squared_mean_is_unbiased() -> None:
    """The plain square of a mean is not: it has the variance of the mean in it."""
    found = [squared_mean(gram(gradients(seed, mean=0.1))) for seed in range(120)]
    assert np.mean(found) == pytest.approx(0.01 * PARAMETERS, abs=4 * np.std(found) / np.sqrt(len(found)))
    plain = [(gradients(seed, mean=0.1).mean(0) ** 2).sum() for seed in range(120)]
    assert np.mean(plain) > 2 * 0.01 * PARAMETERS


def test_z_is_a_standard_normal_without_a_mean_and_large_with_one() -> None:
    without = [mean_z(gram(gradients(seed))) for seed in range(120)]
    assert abs(np.mean(without)) < 0.3
    assert 0.8 < np.std(without) < 1.2
    assert min(mean_z(gram(gradients(seed, mean=0.25))) for seed in range(20)) > 3


def test_the_error_is_the_spread_of_the_squared_mean() -> None:
    matrices = [gram(gradients(seed)) for seed in range(120)]
    spread = np.std([squared_mean(k) for k in matrices])
    assert np.mean([squared_mean_error(k) for k in matrices]) == pytest.approx(spread, rel=0.15)


def test_an_interval_draws_the_same_gradients_from_both() -> None:
    """A ratio of one gradient to itself, scaled, has no spread at all."""
    g = gradients(0)
    low, high = interval(lambda a, b: variance(a) / variance(b), gram(3 * g), gram(g), seed=0, draws=50)
    assert low == pytest.approx(9, rel=1e-4)
    assert high == pytest.approx(9, rel=1e-4)
    apart = interval(lambda a, b: variance(a) / variance(b), gram(gradients(1)), gram(g), seed=0, draws=50)
    assert apart[0] < apart[1]
