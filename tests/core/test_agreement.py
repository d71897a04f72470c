"""Tallies add up, and their intervals hold what they promise: by hand, and by drawing samples from a known truth."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from headrace_core.agreement import in_share, mean, share, wilson
from headrace_core.metrics import Flips, Pairs, Tally


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
    ("value", "count", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (0.9, 100, 0.8256, 0.9448)]
)
def test_wilsons_interval_as_published(value: float, count: int, low: float, high: float) -> None:
    """Figures of Newcombe's comparison of intervals (Statistics in Medicine 17, 1998), to four places."""
    assert wilson(value, count) == pytest.approx((low, high), abs=1e-4)


def test_groups_that_agree_within_count_as_one_each() -> None:
    """Ten groups of eight, each all ones or all zeros, tell as much of a share as ten completions, not as eighty."""
    whole = share(tally(*([[1.0] * 8] * 4 + [[0.0] * 8] * 6)))
    mixed = share(tally(*([[1.0, 0.0] * 4] * 10)))
    assert whole is not None
    assert mixed is not None
    assert (whole.low, whole.high) == pytest.approx(wilson(0.4, 9))
    assert (mixed.low, mixed.high) == pytest.approx(wilson(0.5, 80))
    assert whole.count == mixed.count == 80


def test_all_or_none_is_of_as_many_as_there_are_groups() -> None:
    never, always, one = share(tally(*[[0.0] * 8] * 5)), share(tally(*[[1.0] * 8] * 5)), share(tally([1, 0]))
    assert never is not None
    assert always is not None
    assert one is not None
    assert (never.low, never.high) == pytest.approx(wilson(0.0, 5))
    assert (always.low, always.high) == pytest.approx(wilson(1.0, 5))
    assert (one.low, one.high) == pytest.approx(wilson(0.5, 1))


def test_nothing_is_said_of_nothing() -> None:
    assert share(Tally()) is None
    assert mean(Tally()) is None
    assert mean(tally([3.0, 4.0])) is None, "one group has no error to tell"


def test_a_mean_by_hand() -> None:
    """Three groups of two, sums 2, 4, 6: mean 2, variance of the mean 8/(3·2)·9/36 = 1/3."""
    found = mean(tally([1, 1], [2, 2], [3, 3]))
    assert found is not None
    assert found.value == 2.0
    assert found.high - found.value == pytest.approx(1.959964 * (1 / 3) ** 0.5)


def coverage(draw: Callable[[random.Random], Tally], truth: float) -> float:
    chance, trials, held = random.Random(3), 400, 0
    for _ in range(trials):
        found = share(draw(chance))
        assert found is not None
        held += found.low <= truth <= found.high
    return held / trials


def test_the_interval_holds_the_truth_though_whole_groups_flip() -> None:
    """95 % of the time, within three standard errors of 400 trials; a Wilson interval of completions would not."""

    def whole(chance: random.Random) -> Tally:
        return tally(*[[float(chance.random() < 0.2)] * 8 for _ in range(60)])

    def single(chance: random.Random) -> Tally:
        return tally(*[[float(chance.random() < 0.2) for _ in range(8)] for _ in range(60)])

    def naively(chance: random.Random) -> Tally:
        of = whole(chance)
        return tally(*[[1.0]] * int(of.total), *[[0.0]] * int(of.count - of.total))

    assert coverage(whole, 0.2) > 0.917
    assert coverage(single, 0.2) > 0.917
    assert coverage(naively, 0.2) < 0.7


def test_flips_and_pairs_by_hand() -> None:
    flips = Flips().with_group([True, True, False, False], [True, False, True, False]).with_group([True], [True])
    assert (flips.up.total, flips.up.count) == (1, 2)
    assert (flips.down.total, flips.down.count) == (1, 3)
    assert (flips.disagree.total, flips.disagree.count) == (2, 5)
    pairs = Pairs().with_group([1.0, 0.0, 0.5], [1.0, 1.0, 0.0]) + Pairs().with_group([2.0], [2.0])
    assert (pairs.equal.total, pairs.equal.count, pairs.equal.groups) == (2, 4, 2)
    assert (pairs.difference.total, pairs.shift.total) == (1.5, 0.5)


def test_a_share_is_drawn_alike_everywhere_and_for_each_purpose_anew() -> None:
    chosen = [n for n in range(5000) if in_share(0.1, 7, "audit", n)]
    assert 400 < len(chosen) < 600
    assert chosen == [n for n in range(5000) if in_share(0.1, 7, "audit", n)]
    assert len(set(chosen) & {n for n in range(5000) if in_share(0.1, 7, "again", n)}) < 100
    assert not any(in_share(0.0, n) for n in range(100))
    assert all(in_share(1.0, n) for n in range(100))
