"""How far a reward can be relied on: shares and means of tallies, with intervals that hold although completions of one
group resemble each other.

A `Tally` is a sample of groups, not of completions: a flip may hit a whole group at once. The variance of its ratio
r = Σx/Σn is therefore that between groups (Cochran, Sampling Techniques, 3rd ed. 1977, section 9A.1, whole clusters):

    Var r ≈ G/(G−1) · Σ(x_g − r·n_g)² / (Σn)²

A share's interval is Wilson's ("Probable Inference", JASA 22, 1927), of as many independent completions as would have
that variance, at most Σn; where all or none count the variance tells nothing, and it is of as many as there are groups.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .metrics import Tally

Z95 = 1.959964
"""The normal distribution's two-sided 95 % point."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; `count` completions stand behind it."""

    value: float
    low: float
    high: float
    count: int


def share(tally: Tally) -> Estimate | None:
    """Σx/Σn of a tally of zeros and ones; `None` where nothing was counted."""
    if tally.count == 0:
        return None
    value = tally.total / tally.count
    low, high = wilson(value, _independent(tally, value))
    return Estimate(value, low, high, tally.count)


def mean(tally: Tally) -> Estimate | None:
    """Σx/Σn of any figures, ± 1.96 standard errors; `None` with fewer than two groups: there is no error to tell."""
    if tally.groups < 2:
        return None
    value = tally.total / tally.count
    error = Z95 * math.sqrt(_variance(tally, value))
    return Estimate(value, value - error, value + error, tally.count)


def wilson(value: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `value` seen in `count` > 0 independent trials; never outside 0 to 1."""
    squared = Z95 * Z95 / count
    centre = (value + squared / 2) / (1 + squared)
    half = Z95 / (1 + squared) * math.sqrt(value * (1 - value) / count + squared / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def in_share(share: float, *what: str | int) -> bool:
    """Whether `what` (a seed, a purpose, a group) is among a random share of its like: the same in every process."""
    return random.Random("/".join(map(str, what))).random() < share


def _variance(tally: Tally, value: float) -> float:
    """Of the ratio, between groups; at least two."""
    spread = tally.squares - 2 * value * tally.products + value * value * tally.count_squares
    return max(0.0, spread) * tally.groups / (tally.groups - 1) / tally.count**2


def _independent(tally: Tally, value: float) -> float:
    """How many independent completions tell as much of a share as the tally does; from 1 to Σn."""
    if tally.groups < 2 or value in (0.0, 1.0):
        return float(tally.groups)
    variance = _variance(tally, value)
    return min(float(tally.count), max(1.0, value * (1 - value) / variance)) if variance else float(tally.count)
