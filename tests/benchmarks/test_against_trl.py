"""The comparison with TRL: its figures and verdict, by runs whose outcome is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.against_trl.run import compare, figures
from benchmarks.against_trl.sides import Run, Task

TASK = Task("tiny", Path("unused"), 8, 2, 2, target=0.9, speed=2.0, time=1.5, micro_batch=8, engine="vllm")
TRL = Run("trl", 20.0, 200, 1.0, [0.5, 0.6], [10.0, 10.0], [(2, 12.0, "a")], [0.95], target_seconds=12.0)
HEADRACE = Run("headrace", 10.0, 200, 9.0, [0.5, 0.6], [10.0, 10.0], [(2, 8.0, "b")], [0.95], target_seconds=8.0)


def test_ratios_over_all_rounds() -> None:
    runs = [TRL, HEADRACE, replace(TRL, seconds=30.0, target_seconds=24.0), replace(HEADRACE, target_seconds=4.0)]
    compared = compare(TASK, runs)
    assert compared["samples_per_second"] == {"trl": 8.0, "headrace": 20.0}
    assert compared["speed_ratio"] == pytest.approx(2.5)
    assert compared["seconds_to_target"] == {"trl": 18.0, "headrace": 6.0}
    assert compared["time_ratio"] == pytest.approx(3.0)
    assert compared["passed"]
    assert "20 against 8 samples/s, 2.50 x (at least 2)" in figures(TASK, compared)


@pytest.mark.parametrize(
    ("trl", "headrace"),
    [
        (TRL, replace(HEADRACE, seconds=10.1)),
        (TRL, replace(HEADRACE, target_seconds=8.1)),
        (TRL, replace(HEADRACE, target_seconds=None)),
        (replace(TRL, target_seconds=None), HEADRACE),
    ],
    ids=["too slow", "too late", "Headrace not there", "TRL not there"],
)
def test_a_missed_threshold_is_a_miss(trl: Run, headrace: Run) -> None:
    assert compare(TASK, [TRL, HEADRACE])["passed"]
    assert not compare(TASK, [trl, headrace])["passed"]


def test_the_result_names_no_folder() -> None:
    assert compare(TASK, [TRL, HEADRACE])["runs"][0]["checkpoints"] == [{"step": 2, "seconds": 12.0}]
