"""Quantiles of the beta and of Student's t distribution, without a numerical library.

The regularised incomplete beta function is computed by its continued fraction (Abramowitz & Stegun, Handbook of
Mathematical Functions, 1964, 26.5.8) with Lentz's recurrence, its inverse by Newton's method within a bracket.
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300
_TOLERANCE = 1e-12
_MIN_QUANTILE = 1e-90
_MAX_ITERATIONS = 400
"""The continued fraction needs about √max(a, b) iterations: 400 suffice for counts up to some hundred thousand."""


@lru_cache(maxsize=4096)
def beta_quantile(p: float, a: float, b: float) -> float:
    """The quantile of Beta(a, b) at `p`: 0 < p < 1, a > 0, b > 0. Returns 0 where it is below 1e-90."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_MAX_ITERATIONS):
        error = incomplete_beta(x, a, b) - p
        low, high = (low, x) if error > 0 else (x, high)
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b))
        candidate = x - error / density if density else low
        if abs(candidate - x) <= _TOLERANCE * x:  # also where rounding leads it out of the bracket
            return min(max(candidate, low), high)
        if not low < candidate < high:
            candidate = (low + high) / 2
        if candidate < _MIN_QUANTILE:
            return 0.0
        if candidate == 1.0:
            return candidate
        x = candidate
    return x


def t_quantile(p: float, degrees: float) -> float:
    """The quantile of Student's t distribution at `p`: 0.5 < p < 1, degrees of freedom > 0, integer or not.

    From T² = ν(1 − X)/X with X ~ Beta(ν/2, 1/2).
    """
    x = beta_quantile(2 * (1 - p), degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - x) / x) if x else math.inf


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b): the cumulative distribution function of Beta(a, b) at 0 ≤ `x` ≤ 1."""
    if x <= 0.0 or x >= 1.0:
        return float(x > 0.0)
    if x > (a + 1) / (a + b + 2):  # the continued fraction converges fast only below the mean
        return 1 - incomplete_beta(1 - x, b, a)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x(a, b), by Lentz's recurrence."""
    numerator, denominator = 1.0, _away_from_zero(1 - (a + b) * x / (a + 1))
    denominator = 1 / denominator
    value = denominator
    for m in range(1, _MAX_ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            denominator = 1 / _away_from_zero(1 + step * denominator)
            numerator = _away_from_zero(1 + step / numerator)
            factor = numerator * denominator
            value *= factor
        if abs(factor - 1) < _TOLERANCE:
            return value
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
