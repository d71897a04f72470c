"""Statistics of a reward's reliability: shares and means with 95 % confidence intervals. The intervals account for the
correlation of completions within a group, and hold for a small number of groups.

A `Tally` is a sample of groups, not of completions, because errors may affect a whole group at once. So the variance of
its ratio r = Σx/Σn is that between groups (Cochran, Sampling Techniques, 3rd ed. 1977, section 9A.1, whole clusters):

    Var r ≈ G/(G−1) · Σ(x_g − r·n_g)² / (Σn)²,    G = (Σn)²/Σn²

G is the effective number of groups: their number if all have the same size, else less (Kish, Survey Sampling, 1965);
one large group and seven small ones count little more than one. An interval has G − 1 degrees of freedom:

    mean    r ± t(G−1) · √Var r, for at least four groups. Two or three groups are too often equal by chance, which
            would give an interval of no width.
    share   The Clopper–Pearson interval (Biometrika 26, 1934) of the effective number of independent trials: the number
            that would have variance Var r, times (z/t(G−1))² (Korn and Graubard, Survey Methodology 24, 1998), but at
            least G (perfect correlation within groups) and at most Σn. The degrees of freedom are also limited by the
            number of ones and by the number of zeros, because a variance estimated from three of them is as uncertain
            as one from three groups. If all are ones, or all zeros, the variance says nothing, and the interval is that
            of G trials.

Tests draw samples from known distributions, of the sizes that a job has, and count how often the intervals cover the
true values.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..quantiles import beta_quantile, t_quantile
from .metrics import Tally

LEVEL = 0.95
"""Confidence level of all intervals."""
MIN_GROUPS = 4
"""With fewer effective groups, the mean of a tally has no interval."""
_UPPER = (1 + LEVEL) / 2
_Z = 1.959964
"""Quantile of the normal distribution at `_UPPER`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, estimated from `count` completions of `groups` groups."""

    value: float
    low: float
    high: float
    count: int
    groups: int


def share(tally: Tally) -> Estimate | None:
    """Σx/Σn of a tally of zeros and ones; `None` if it is empty."""
    if tally.count == 0:
        return None
    value = tally.total / tally.count
    low, high = clopper_pearson(value, _independent(tally, value))
    return Estimate(value, low, high, tally.count, tally.groups)


def mean(tally: Tally) -> Estimate | None:
    """Σx/Σn of a tally of any figures; `None` with fewer than `MIN_GROUPS` effective groups."""
    error = standard_error(tally)
    if error is None:
        return None
    value = tally.total / tally.count
    half = t_quantile(_UPPER, _effective_groups(tally) - 1) * error
    return Estimate(value, value - half, value + half, tally.count, tally.groups)


def standard_error(tally: Tally) -> float | None:
    """The standard error of Σx/Σn; `None` with fewer than `MIN_GROUPS` effective groups."""
    if _effective_groups(tally) < MIN_GROUPS - _ROUNDING:
        return None
    return math.sqrt(_variance(tally, tally.total / tally.count))


def clopper_pearson(value: float, count: float) -> tuple[float, float]:
    """The 95 % interval, within [0, 1], of a share `value` observed in `count` > 0 independent trials.

    `count` need not be an integer.
    """
    seen, not_seen = value * count, (1 - value) * count
    low = beta_quantile(1 - _UPPER, seen, not_seen + 1) if seen > 0 else 0.0
    high = beta_quantile(_UPPER, seen + 1, not_seen) if not_seen > 0 else 1.0
    return low, high


def is_in_sample(share: float, *what: str | int) -> bool:
    """Whether `what` (a seed, a purpose, a group) belongs to a random sample of this share. Deterministic in `what`."""
    return random.Random("/".join(map(str, what))).random() < share


_ROUNDING = 1e-9


def _effective_groups(tally: Tally) -> float:
    """G of the module."""
    return tally.count**2 / tally.count_squares if tally.count else 0.0


def _variance(tally: Tally, value: float) -> float:
    """Var r of the module; needs more than one effective group."""
    groups = _effective_groups(tally)
    spread = tally.squares - 2 * value * tally.products + value * value * tally.count_squares
    return max(0.0, spread) * groups / (groups - 1) / tally.count**2


def _independent(tally: Tally, value: float) -> float:
    """The effective number of independent trials for a share, from G to Σn; see the module."""
    groups = _effective_groups(tally)
    if groups < 2 - _ROUNDING or value in (0.0, 1.0):
        return groups
    variance = _variance(tally, value)
    trials = value * (1 - value) / variance if variance else float(tally.count)
    degrees = max(1.0, min(groups - 1, tally.total, tally.count - tally.total))
    return min(float(tally.count), max(groups, trials * (_Z / t_quantile(_UPPER, degrees)) ** 2))
