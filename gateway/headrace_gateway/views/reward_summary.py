"""Summarizes a job's reward: the counts of all workers, over all of their starts, as figures with confidence
intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any

from headrace_core.types.metrics import Flips, Pairs, RewardMetrics, Tally
from headrace_core.types.reward_statistics import Estimate, mean, share, standard_error

from ..schemas.observe import RewardSummary


def summary(counted: Sequence[RewardMetrics]) -> RewardSummary:
    """Plain values, for JSON; a figure is `{value, low, high, count, groups}`, None where nothing was counted for it.

    `mean_difference` has no interval: of a size that is never negative, and whose largest value nobody knows, a few
    groups that are alike say nothing about the others. How often two scores differ has one.
    """
    again = reduce(add, (c.again for c in counted), Pairs())
    return {
        "groups": sum(c.groups for c in counted),
        "completions": sum(c.completions for c in counted),
        "not_applicable": sum(c.not_applicable for c in counted),
        "sample_parse_errors": sum(c.sample_parse_errors for c in counted),
        "failures": _counts(c.failures for c in counted),
        "left_out": sum(c.left_out for c in counted),
        "scored_again": {
            "equal": _plain(share(again.equal)),
            "mean_difference": again.difference.total / again.difference.count if again.difference.count else None,
            "failures": _counts(c.again_failures for c in counted),
            "skipped_groups": sum(c.again_skipped for c in counted),
        },
        "truth": {
            name: _flips([c.truth.get(name, Flips()) for c in counted]) for name in _names(c.truth for c in counted)
        },
        "between": {pair: _plain(share(_between(counted, pair))) for pair in _names(c.between for c in counted)},
        "audit_failed": sum(c.audit_failed for c in counted),
        "drift": _drift(counted),
    }


def _flips(counted: Sequence[Flips]) -> dict[str, Any]:
    """The confusion of high and low with its rates."""
    total = reduce(add, counted)
    up, down = int(total.up.total), int(total.down.total)
    confusion = {
        "high_and_truly_high": total.down.count - down,
        "high_but_truly_low": up,
        "low_but_truly_high": down,
        "low_and_truly_low": total.up.count - up,
    }
    rates = {"p01": share(total.up), "p10": share(total.down), "disagreement": share(total.disagree)}
    return {"confusion": confusion, **{name: _plain(rate) for name, rate in rates.items()}}


def _drift(counted: Sequence[RewardMetrics]) -> dict[str, Any]:
    """`moves`: whether the interval of the mean shift leaves out 0, as it does by chance in one round of twenty; None
    while there is none."""
    shifts = reduce(add, (c.drift.shift for c in counted), Pairs().shift)
    shift = mean(shifts)
    return {
        "mean_shift": _plain(shift),
        "standard_error": standard_error(shifts),
        "rounds": sum(c.drift_rounds for c in counted),
        "moves": None if shift is None else not shift.low <= 0.0 <= shift.high,
    }


def _between(counted: Sequence[RewardMetrics], pair: str) -> Tally:
    return reduce(add, (c.between.get(pair, Tally()) for c in counted))


def _names(every: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({name for names in every for name in names})


def _counts(every: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, every), Counter()))


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
