"""Statistics of n independent gradients: their mean and variance, and a test whether the mean is zero.

There are a few hundred gradients of hundreds of thousands of entries, so everything is computed from the Gram matrix
K [n, n], K_ij = g_i · g_j. Its entries with i ≠ j are unbiased estimates of |E g|², free of each gradient's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def gram(gradients: npt.NDArray[np.floating[Any]]) -> Matrix:
    """The Gram matrix [n, n] of gradients [n, P]."""
    return (gradients @ gradients.T).astype(np.float64)


def variance(k: Matrix) -> float:
    """Trace of a gradient's covariance matrix: E|g − E g|²."""
    n = len(k)
    return float((np.trace(k) - k.sum() / n) / (n - 1))


def squared_mean(k: Matrix) -> float:
    """Unbiased estimate of |E g|²; it may be negative if the mean is zero."""
    n = len(k)
    return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def squared_mean_error(k: Matrix) -> float:
    """Standard error of `squared_mean` if E g is zero: √(2 tr Σ² / (n(n − 1))).

    (Chen and Qin, Annals of Statistics 38, 2010: a test of means where there are more dimensions than samples.)
    """
    n = len(k)
    off_diagonal = (k * k).sum() - (np.diag(k) ** 2).sum()
    return math.sqrt(2 * off_diagonal) / (n * (n - 1))


def mean_z(k: Matrix) -> float:
    """`squared_mean` in units of its standard error under the hypothesis of a zero mean."""
    return squared_mean(k) / squared_mean_error(k)


def interval(
    statistic: Callable[..., float], *matrices: Matrix, seed: int, level: float = 0.9, draws: int = 1000
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of paired Gram matrices: each resample draws the same gradients from all."""
    rng, n = np.random.default_rng(seed), len(matrices[0])
    values = []
    for _ in range(draws):
        drawn = rng.integers(0, n, n)
        values.append(statistic(*(k[np.ix_(drawn, drawn)] for k in matrices)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
