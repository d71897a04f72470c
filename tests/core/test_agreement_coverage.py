"""Every interval that the service prints holds its truth as often as it says, at the sizes that jobs have.

Samples are drawn from known truths with a fixed seed; nominal is 95 %. All printed intervals are made by `share` and
`mean`: flip rates, disagreement and equal scores by the first, drift by the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace_core.types.metrics import Tally
from headrace_core.types.reward_statistics import Estimate, mean, share

Array = npt.NDArray[Any]
TRIALS = 600
LEAST = 0.93
"""0.95 less about two standard errors of as many trials."""
DRIFT_TRIALS = 2000


def tallies(sums: Array, sizes: Array) -> Iterator[Tally]:
    """One of each row of [trials, groups]: sums of the groups' completions, and how many completions they are."""
    for x, n in zip(sums.astype(float), sizes, strict=True):
        yield Tally(
            int((n > 0).sum()), int(n.sum()), x.sum(), float((x * x).sum()), float((x * n).sum()), int((n * n).sum())
        )


def held(interval: Callable[[Tally], Estimate | None], sums: Array, sizes: Array, truth: float) -> float:
    """How often the interval holds the truth, of the trials in which there is one: most of them."""
    found = [estimate for each in tallies(sums, sizes) if (estimate := interval(each)) is not None]
    assert len(found) > len(sums) * 0.9
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


def group_sizes(kind: str, groups: int, chance: np.random.Generator) -> Array:
    """[trials, groups]. `all`: eight completions each. `judged`: those of eight that are truly low, as p01 counts them;
    prompts are easy or hard, so that some groups have eight and some none."""
    if kind == "all":
        return np.full((TRIALS, groups), 8)
    return chance.binomial(8, chance.beta(0.5, 0.5, (TRIALS, groups)))


NOISE: dict[str, Callable[[np.random.Generator, Array, float], Array]] = {
    "whole groups": lambda chance, sizes, p: sizes * (chance.random(sizes.shape) < p),
    "completions": lambda chance, sizes, p: chance.binomial(sizes, p),
    "groups that differ": lambda chance, sizes, p: chance.binomial(sizes, chance.beta(p, 1 - p, sizes.shape)),
}
"""Completions of each group on which a share of `p` holds."""


@pytest.mark.parametrize("groups", [2, 4, 8, 40])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("sizes", ["all", "judged"])
def test_a_share(groups: int, noise: str, sizes: str) -> None:
    chance = np.random.default_rng(groups)
    for p in (0.02, 0.1, 0.3, 0.5):
        counted = group_sizes(sizes, groups, chance)
        assert held(share, NOISE[noise](chance, counted, p), counted, p) >= LEAST, f"p = {p}"


def test_a_share_by_independent_completions_would_not() -> None:
    """The cross-check: the same draws without their groups, as if each completion were a group."""
    chance = np.random.default_rng(0)
    sizes = np.full((TRIALS, 40), 8)
    sums = NOISE["whole groups"](chance, sizes, 0.2)
    completions = np.repeat(sums > 0, 8, axis=1)
    assert held(share, completions, np.ones_like(completions, dtype=int), 0.2) < 0.7
    assert held(share, sums, sizes, 0.2) >= LEAST


def drifts(chance: np.random.Generator, groups: int, size: int, flip: float, per: str) -> Array:
    """[trials, groups] sums of second less first score, of a reward that flips right ones and wrong ones each time it
    is asked, by `flip`, a whole group at once or each completion for itself: it shakes, and does not move."""
    shape, of_groups = (DRIFT_TRIALS, groups, size), (DRIFT_TRIALS, groups, 1)
    truly = chance.random(shape) < chance.random(of_groups)

    def scored() -> Array:
        flipped = chance.random(shape if per == "completion" else of_groups) < flip
        return (truly ^ flipped).astype(int)

    return (scored() - scored()).sum(axis=2)


@pytest.mark.parametrize("groups", [4, 8, 16])
@pytest.mark.parametrize("per", ["completion", "group"])
def test_a_drift_of_a_reward_that_only_shakes_is_seldom_seen(groups: int, per: str) -> None:
    """One panel has 8 groups; 4 are the fewest that make an estimate, 16 are two workers'. 5 % of false alarms are seen
    as at most 7 in 2,000 trials, but for one case in 10,000."""
    chance = np.random.default_rng(groups)
    for size in (2, 8, 32):
        for flip in (0.02, 0.2, 0.5):
            sums = drifts(chance, groups, size, flip, per)
            alarms = 1 - held(mean, sums, np.full(sums.shape, size), 0.0)
            assert alarms <= 0.07, f"groups of {size}, flips of {flip}"


def test_a_drift_is_held_where_there_is_one() -> None:
    """Scores move by 0.1, and every group by another error: the interval holds the shift, and leaves out 0."""
    chance = np.random.default_rng(1)
    sizes = chance.binomial(8, 0.8, (TRIALS, 8))
    sums = sizes * (0.1 + chance.normal(0, 0.05, sizes.shape)) + chance.normal(0, 0.05, sizes.shape) * np.sqrt(sizes)
    assert held(mean, sums, sizes, 0.1) >= LEAST
    assert held(mean, sums, sizes, 0.0) < 0.1


def test_a_drift_by_normal_quantiles_would_cry_wolf() -> None:
    """The cross-check, of four groups: ± 1.96 standard errors, with no fewer than two groups asked for."""

    def normal(tally: Tally) -> Estimate | None:
        found = mean(tally)
        if found is None:
            return None
        half = (found.high - found.value) * 1.959964 / 3.182446
        return Estimate(found.value, found.value - half, found.value + half, found.count, found.groups)

    sums = np.random.default_rng(2).normal(0, 1, (TRIALS, 4))
    assert held(normal, sums, np.full(sums.shape, 8), 0.0) < 0.9
    assert held(mean, sums, np.full(sums.shape, 8), 0.0) >= LEAST
