"""Counts of several workers as figures with intervals; what was not measured is None, and is not said."""

from __future__ import annotations

import json

import pytest

from headrace_core.types.metrics import Flips, Pairs, RewardMetrics
from headrace_core.types.reward_statistics import clopper_pearson
from headrace_gateway.views.reward_summary import summary
from headrace_lab.reports.job_report import reward_facts


def counted(worker: str = "rollout-0", started: float = 1.0, **fields: object) -> RewardMetrics:
    return RewardMetrics(**{"worker": worker, "started": started, "time": 2.0, **fields})  # type: ignore[arg-type]


def test_of_nothing_nothing_is_said() -> None:
    for found in (summary([]), summary([counted()])):
        assert found["scored_again"]["equal"] is None
        assert found["drift"] == {"mean_shift": None, "standard_error": None, "rounds": 0, "moves": None}
        assert found["truth"] == found["failures"] == {}
        assert reward_facts(found) == {"Reward failures": "none, of 0 completions"}
        json.dumps(found)


def test_flip_rates_of_two_workers() -> None:
    one = Flips().with_group([True, False, True, False], [False, False, True, True])
    two = Flips().with_group([False, False], [False, False])
    found = summary([counted(truth={"audit": one}), counted("rollout-1", truth={"audit": two, "clean": one})])["truth"]
    assert list(found) == ["audit", "clean"]
    assert found["audit"]["confusion"] == {
        "high_and_truly_high": 1,
        "high_but_truly_low": 1,
        "low_but_truly_high": 1,
        "low_and_truly_low": 3,
    }
    rates = {name: found["audit"][name]["value"] for name in ("p01", "p10", "disagreement")}
    assert rates == pytest.approx({"p01": 1 / 4, "p10": 1 / 2, "disagreement": 2 / 6})
    assert found["audit"]["p01"]["count"] == 4


def test_a_reward_that_moves_is_told_from_one_that_shakes() -> None:
    moved, shaken = Pairs(), Pairs()
    for n in range(16):
        moved = moved.with_group([0.0, 1.0], [0.2 + n / 100, 1.2])
        shaken = shaken.with_group([0.0, 1.0], [0.0 + (-1) ** n, 1.0])
    found = summary([counted(drift=moved, drift_rounds=2)])["drift"]
    assert found["moves"] is True
    assert found["rounds"] == 2
    assert found["mean_shift"]["value"] == pytest.approx(0.2375)
    assert found["mean_shift"]["high"] - 0.2375 == pytest.approx(2.13145 * found["standard_error"], rel=1e-5), "t of 15"
    assert summary([counted(drift=shaken)])["drift"]["moves"] is False


def test_of_a_few_groups_a_drift_is_not_told_and_a_difference_has_no_interval() -> None:
    few = Pairs()
    for _ in range(3):
        few = few.with_group([0.0, 1.0], [0.5, 1.0])
    found = summary([counted(drift=few, drift_rounds=1, again=few)])
    assert found["drift"] == {"mean_shift": None, "standard_error": None, "rounds": 1, "moves": None}
    assert found["scored_again"]["mean_difference"] == 0.25
    assert "Drift of the reward" not in reward_facts(found)


def test_the_groups_of_all_workers_make_one_estimate() -> None:
    each = Pairs()
    for shift in (0.5, 0.75):
        each = each.with_group([0.0, 1.0], [shift, 1.0])
    shift = summary([counted(drift=each), counted("rollout-1", drift=each)])["drift"]["mean_shift"]
    assert (shift["value"], shift["count"], shift["groups"]) == (0.3125, 8, 4)


def test_the_facts_of_a_report() -> None:
    again = Pairs().with_group([1.0] * 8, [1.0] * 8).with_group([0.0] * 8, [0.0] * 8)
    flips = Flips().with_group([True] + [False] * 9, [False] * 10)
    words = reward_facts(
        summary([counted(completions=16, failures={"timeout": 2}, again=again, truth={"audit": flips})])
    )
    low, few = clopper_pearson(1.0, 2)[0], clopper_pearson(0.1, 1)
    assert words == {
        "Reward failures": "timeout 2, of 16 completions",
        "Scored again": f"100.0% ({low:.1%} to 100.0%) the same, 16 completions",
        "Against audit": f"10.0% ({few[0]:.1%} to {few[1]:.1%}) low made high",
    }
