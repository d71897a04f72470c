"""Mean and variance of n independent gradients, and whether a mean is zero, from their inner products alone.

A gradient has hundreds of thousands of entries and there are a few hundred of them, so everything is read off the
Gram matrix K [n, n], K_ij = g_i · g_j: what has i ≠ j is free of the noise of one gradient with itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def gram(gradients: npt.NDArray[np.floating[Any]]) -> Matrix:
    """[n, n] of [n, P]."""
    return (gradients @ gradients.T).astype(np.float64)


def variance(k: Matrix) -> float:
    """Trace of one gradient's covariance: E|g − E g|²."""
    n = len(k)
    return float((np.trace(k) - k.sum() / n) / (n - 1))


def squared_mean(k: Matrix) -> float:
    """|E g|², unbiased, so that it may be negative where the mean is zero."""
    n = len(k)
    return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def squared_mean_error(k: Matrix) -> float:
    """Standard error of `squared_mean` where E g is zero: √(2 tr Σ² / (n(n − 1))).

    (Chen and Qin, Annals of Statistics 38, 2010: a test of means where there are more dimensions than samples.)
    """
    n = len(k)
    off_diagonal = (k * k).sum() - (np.diag(k) ** 2).sum()
    return math.sqrt(2 * off_diagonal) / (n * (n - 1))


def mean_z(k: Matrix) -> float:
    """How many standard errors `squared_mean` is above what a mean of zero gives."""
    return squared_mean(k) / squared_mean_error(k)


def interval(
    statistic: Callable[..., float], *matrices: Matrix, seed: int, level: float = 0.9, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of paired Gram matrices: the same gradients are drawn from each."""
    rng, n = np.random.default_rng(seed), len(matrices[0])
    found = []
    for _ in range(draws):
        drawn = rng.integers(0, n, n)
        found.append(statistic(*(k[np.ix_(drawn, drawn)] for k in matrices)))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
