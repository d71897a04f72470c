"""How far a reward can be relied on: shares and means of tallies, with 95 % intervals that hold although completions of
one group resemble each other, and although there are only a few groups.

A `Tally` is a sample of groups, not of completions: a flip may hit a whole group at once. The variance of its ratio
r = Σx/Σn is therefore that between groups (Cochran, Sampling Techniques, 3rd ed. 1977, section 9A.1, whole clusters):

    Var r ≈ G/(G−1) · Σ(x_g − r·n_g)² / (Σn)²,    G = (Σn)²/Σn²

G is the number of groups where all are of one size, less where they are not (Kish, Survey Sampling, 1965): one large
group beside seven small ones is little more than one. An interval by this variance has G − 1 degrees of freedom:

    mean    r ± t(G−1) · √Var r, from four groups on. Two or three of them agree by chance too often: the interval would
            have no width.
    share   Clopper's and Pearson's (Biometrika 26, 1934) of as many independent trials as would have that variance,
            times (z/t(G−1))², as Korn and Graubard take it (Survey Methodology 24, 1998); no fewer than G, as if every
            group agreed within itself, nor more than Σn. No more degrees of freedom than completions that count, or
            that do not: a variance that three of them make is as uncertain as if there were three groups. Where all or
            none count it tells nothing, and the interval is of G trials.

Tests draw samples from known truths, of the sizes that a job has, and count how often the intervals hold them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..quantiles import beta_quantile, t_quantile
from .metrics import Tally

LEVEL = 0.95
"""Of all intervals."""
LEAST_GROUPS = 4
"""Below, the mean of a tally has no interval."""
_UPPER = (1 + LEVEL) / 2
_Z = 1.959964
"""The normal distribution's quantile at `_UPPER`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; `count` completions of `groups` groups stand behind it."""

    value: float
    low: float
    high: float
    count: int
    groups: int


def share(tally: Tally) -> Estimate | None:
    """Σx/Σn of a tally of zeros and ones; `None` where nothing was counted."""
    if tally.count == 0:
        return None
    value = tally.total / tally.count
    low, high = clopper_pearson(value, _independent(tally, value))
    return Estimate(value, low, high, tally.count, tally.groups)


def mean(tally: Tally) -> Estimate | None:
    """Σx/Σn of any figures; `None` with fewer than `LEAST_GROUPS` groups."""
    error = standard_error(tally)
    if error is None:
        return None
    value = tally.total / tally.count
    half = t_quantile(_UPPER, _effective_groups(tally) - 1) * error
    return Estimate(value, value - half, value + half, tally.count, tally.groups)


def standard_error(tally: Tally) -> float | None:
    """Of Σx/Σn of any figures; `None` with fewer than `LEAST_GROUPS` groups."""
    if _effective_groups(tally) < LEAST_GROUPS - _ROUNDING:
        return None
    return math.sqrt(_variance(tally, tally.total / tally.count))


def clopper_pearson(value: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share `value` seen in `count` > 0 independent trials, whole or not; from 0 to 1."""
    seen, not_seen = value * count, (1 - value) * count
    low = beta_quantile(1 - _UPPER, seen, not_seen + 1) if seen > 0 else 0.0
    high = beta_quantile(_UPPER, seen + 1, not_seen) if not_seen > 0 else 1.0
    return low, high


def is_in_sample(share: float, *what: str | int) -> bool:
    """Whether `what` (a seed, a purpose, a group) is among a random share of its like: the same in every process."""
    return random.Random("/".join(map(str, what))).random() < share


_ROUNDING = 1e-9


def _effective_groups(tally: Tally) -> float:
    return tally.count**2 / tally.count_squares if tally.count else 0.0


def _variance(tally: Tally, value: float) -> float:
    """Of the ratio, between groups; more than one."""
    groups = _effective_groups(tally)
    spread = tally.squares - 2 * value * tally.products + value * value * tally.count_squares
    return max(0.0, spread) * groups / (groups - 1) / tally.count**2


def _independent(tally: Tally, value: float) -> float:
    """How many independent completions tell as much of a share as the tally does; from G to Σn."""
    groups = _effective_groups(tally)
    if groups < 2 - _ROUNDING or value in (0.0, 1.0):
        return groups
    variance = _variance(tally, value)
    found = value * (1 - value) / variance if variance else float(tally.count)
    degrees = max(1.0, min(groups - 1, tally.total, tally.count - tally.total))
    return min(float(tally.count), max(groups, found * (_Z / t_quantile(_UPPER, degrees)) ** 2))
