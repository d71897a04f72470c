"""Quantiles against tables, identities, and each other."""

from __future__ import annotations

import math

import pytest

from headrace_core.quantiles import beta_quantile, incomplete_beta, t_quantile


@pytest.mark.parametrize(
    ("p", "degrees", "t"),
    [
        (0.975, 1, 12.706205),
        (0.975, 2, 4.302653),
        (0.975, 3, 3.182446),
        (0.975, 7, 2.364624),
        (0.975, 15, 2.131450),
        (0.975, 120, 1.979930),
        (0.95, 5, 2.015048),
        (0.995, 10, 3.169273),
        (0.975, 1e7, 1.959964),
    ],
)
def test_students_quantiles_as_every_table_has_them(p: float, degrees: float, t: float) -> None:
    assert t_quantile(p, degrees) == pytest.approx(t, rel=1e-6)


def test_students_quantiles_of_one_and_two_degrees_have_a_closed_form() -> None:
    for p in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_the_incomplete_beta_function_of_whole_numbers_is_a_binomial_tail() -> None:
    for n, x in ((5, 0.3), (30, 0.01), (400, 0.7)):
        for a in (1, n // 2, n):
            tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
            assert incomplete_beta(x, a, n - a + 1) == pytest.approx(tail, rel=1e-9)
    assert (incomplete_beta(0.0, 2, 3), incomplete_beta(1.0, 2, 3)) == (0.0, 1.0)


@pytest.mark.parametrize("a", [1e-3, 0.19, 1.0, 7.5, 300.0, 2e5])
@pytest.mark.parametrize("b", [1e-3, 0.5, 1.81, 40.0, 1e5])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.975])
def test_a_quantile_is_the_inverse_at_all_sizes(a: float, b: float, p: float) -> None:
    x = beta_quantile(p, a, b)
    assert 0.0 <= x <= 1.0
    if 1e-90 < x < 1 - 1e-9:  # nearer to an end it is that end
        assert incomplete_beta(x, a, b) == pytest.approx(p, rel=1e-6)
