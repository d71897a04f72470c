"""Tallies add up, and their intervals are those of the formulas; how often they hold: `test_agreement_coverage.py`."""

from __future__ import annotations

import pytest

from headrace_core.types.metrics import Flips, Pairs, Tally
from headrace_core.types.reward_statistics import clopper_pearson, is_in_sample, mean, share


def tally(*groups: list[float]) -> Tally:
    found = Tally()
    for group in groups:
        found = found.with_group(group)
    return found


def test_a_tally_by_hand_and_added_up() -> None:
    assert tally([1, 0, 1], [0, 0]) == Tally(2, 5, 2.0, 4.0, 6.0, 13)
    assert tally([1, 0, 1]) + tally([0, 0]) + Tally() == tally([1, 0, 1], [0, 0])
    assert tally([]) == Tally()


@pytest.mark.parametrize(
    ("value", "count", "low", "high"), [(0.5, 10, 0.1871, 0.8129), (0.0, 10, 0.0, 0.3085), (0.9, 100, 0.8238, 0.9510)]
)
def test_cloppers_and_pearsons_interval_as_published(value: float, count: int, low: float, high: float) -> None:
    """To four places, as tables of the exact binomial interval have it."""
    assert clopper_pearson(value, count) == pytest.approx((low, high), abs=1e-4)


def test_groups_that_agree_within_count_as_one_each() -> None:
    """Ten groups of eight, each all ones or all zeros, tell as much of a share as ten completions, not as eighty."""
    whole = share(tally(*([[1.0] * 8] * 4 + [[0.0] * 8] * 6)))
    mixed = share(tally(*([[1.0, 0.0] * 4] * 10)))
    assert whole is not None
    assert mixed is not None
    assert (whole.low, whole.high) == pytest.approx(clopper_pearson(0.4, 10))
    assert (mixed.low, mixed.high) == pytest.approx(clopper_pearson(0.5, 80 * (1.959964 / 2.262157) ** 2), abs=1e-6)
    assert (whole.count, whole.groups) == (mixed.count, mixed.groups) == (80, 10)


def test_all_or_none_is_of_as_many_as_there_are_groups() -> None:
    never, always, one = share(tally(*[[0.0] * 8] * 5)), share(tally(*[[1.0] * 8] * 5)), share(tally([1, 0]))
    assert never is not None
    assert always is not None
    assert one is not None
    assert (never.low, never.high) == pytest.approx(clopper_pearson(0.0, 5))
    assert (always.low, always.high) == pytest.approx(clopper_pearson(1.0, 5))
    assert (one.low, one.high) == pytest.approx(clopper_pearson(0.5, 1))


def test_one_large_group_is_not_made_many_by_small_ones() -> None:
    """64 completions of one prompt and one each of four others: little more than one group, (Σn)²/Σn² = 1.13."""
    found = share(tally([0.0] * 64, [0.0], [0.0], [0.0], [0.0]))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(clopper_pearson(0.0, 68**2 / (64**2 + 4)))


def test_nothing_is_said_of_nothing() -> None:
    assert share(Tally()) is None
    assert mean(Tally()) is None
    assert mean(tally([3.0, 4.0])) is None, "one group has no error to tell"
    assert mean(tally([0.5], [0.5], [0.5])) is None, "three that agree by chance would make one without width"


def test_a_mean_by_hand() -> None:
    """Four groups of two, sums 2, 4, 6, 8: mean 2.5, its variance 4/3 · 20/64 = 5/12; Student's t of 3 is 3.182."""
    found = mean(tally([1, 1], [2, 2], [3, 3], [4, 4]))
    assert found is not None
    assert (found.value, found.count, found.groups) == (2.5, 8, 4)
    assert found.high - found.value == pytest.approx(3.182446 * (5 / 12) ** 0.5, rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_flips_and_pairs_by_hand() -> None:
    flips = Flips().with_group([True, True, False, False], [True, False, True, False]).with_group([True], [True])
    assert (flips.up.total, flips.up.count) == (1, 2)
    assert (flips.down.total, flips.down.count) == (1, 3)
    assert (flips.disagree.total, flips.disagree.count) == (2, 5)
    pairs = Pairs().with_group([1.0, 0.0, 0.5], [1.0, 1.0, 0.0]) + Pairs().with_group([2.0], [2.0])
    assert (pairs.equal.total, pairs.equal.count, pairs.equal.groups) == (2, 4, 2)
    assert (pairs.difference.total, pairs.shift.total) == (1.5, 0.5)


def test_a_share_is_drawn_alike_everywhere_and_for_each_purpose_anew() -> None:
    chosen = [n for n in range(5000) if is_in_sample(0.1, 7, "audit", n)]
    assert 400 < len(chosen) < 600
    assert chosen == [n for n in range(5000) if is_in_sample(0.1, 7, "audit", n)]
    assert len(set(chosen) & {n for n in range(5000) if is_in_sample(0.1, 7, "again", n)}) < 100
    assert not any(is_in_sample(0.0, n) for n in range(100))
    assert all(is_in_sample(1.0, n) for n in range(100))
