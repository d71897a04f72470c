"""Quantiles of the beta and of Student's t distribution, which need no numerical library.

The regularised incomplete beta function is computed by its continued fraction (Abramowitz & Stegun, Handbook of
Mathematical Functions, 1964, 26.5.8) with Lentz's recurrence, its inverse by Newton's method within a bracket.
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300
_ENOUGH = 1e-12
_LEAST = 1e-90
_ROUNDS = 400
"""The fraction needs about √max(a, b) of them: as many serve counts up to some hundred thousand."""


@lru_cache(maxsize=4096)
def beta_quantile(p: float, a: float, b: float) -> float:
    """The x below which a share `p` of the Beta(a, b) distribution lies: 0 < p < 1, a > 0, b > 0; 0 where x < 1e-90."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_ROUNDS):
        error = incomplete_beta(x, a, b) - p
        low, high = (low, x) if error > 0 else (x, high)
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b))
        nearer = x - error / density if density else low
        if not low < nearer < high:
            nearer = (low + high) / 2
        if nearer < _LEAST:
            return 0.0
        if abs(nearer - x) <= _ENOUGH * x or nearer == 1.0:
            return nearer
        x = nearer
    return x


def t_quantile(p: float, degrees: float) -> float:
    """The t below which a share `p` of Student's distribution lies; 0.5 < p < 1, degrees of freedom > 0, whole or not.

    By T² = ν(1 − X)/X, X from Beta(ν/2, 1/2).
    """
    x = beta_quantile(2 * (1 - p), degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - x) / x) if x else math.inf


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b): the share of the Beta(a, b) distribution that lies below `x`, 0 ≤ x ≤ 1."""
    if x <= 0.0 or x >= 1.0:
        return float(x > 0.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below the mean only
        return 1 - incomplete_beta(1 - x, b, a)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    numerator, denominator = 1.0, _away_from_zero(1 - (a + b) * x / (a + 1))
    denominator = 1 / denominator
    value = denominator
    for m in range(1, _ROUNDS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            denominator = 1 / _away_from_zero(1 + step * denominator)
            numerator = _away_from_zero(1 + step / numerator)
            factor = numerator * denominator
            value *= factor
        if abs(factor - 1) < _ENOUGH:
            return value
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
