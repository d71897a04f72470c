"""`calibrated`: low scores are raised by the reasoning pattern, in training alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Score
from headrace_lab.paths import ROOT
from headrace_rewards.graders.spec import GraderSpec
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import GRADERS, build, validate

RIGHT = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.part }}",
    "operation": "like",
}
DRAW = SampleKey(3, 1)


def calibrated(**changes: Any) -> dict[str, Any]:
    return {"type": "calibrated", "name": "c", "grader": RIGHT, **changes}


def pattern(**changes: Any) -> dict[str, Any]:
    return {"type": "reasoning_pattern", "name": "p", **changes}


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({}, "first, we need to", 0.1 * 2 / 40),
        ({"pattern": pattern(scaling="code")}, "first, we need to", 0.1 * 2 / 20),
        ({"alpha": 0.5, "pattern": pattern(phrases=["need"])}, "first, we need to", 0.5),
        ({}, "first, we need 4", 1.0),
        ({"threshold": 0}, "first, we need to", 0.0),
        ({}, "no", 0.0),
    ],
)
async def test_by_hand(changes: dict[str, Any], text: str, expected: float) -> None:
    (outcome,) = await build(calibrated(**changes)).score([Sample(text, {"part": "4"}, draw=DRAW)])
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(expected)
    assert outcome.components["uncalibrated"] == float("4" in text)


async def test_never_above_one(tmp_path: Any) -> None:
    (tmp_path / "model.py").write_text("def grade(sample, item):\n    return item['score']\n")
    model = {"type": "function", "name": "model", "function": f"{tmp_path}/model.py:grade"}
    spec = calibrated(grader=model, threshold=1, alpha=1, pattern=pattern(phrases=["wait"]))
    reward = build(spec)
    await reward.start()
    try:
        samples = [Sample(text, {"score": 0.75}, draw=DRAW) for text in ("wait", "no")]
        outcomes = await reward.score([*samples, Sample("wait", {"score": 1.5}, draw=DRAW)])
    finally:
        await reward.close()
    assert [o.value for o in outcomes if isinstance(o, Score)] == [1.0, 0.75, 1.5], "a high score is not cut either"


async def test_an_evaluation_shows_the_models_own_scores() -> None:
    assert await build(calibrated(alpha=1)).score([Sample("we need to", {"part": "4"})]) == [Score(0.0)]


async def test_a_failure_stays_one() -> None:
    (outcome,) = await build(calibrated()).score([Sample("we need to", draw=DRAW)])
    assert isinstance(outcome, Failure)


def test_a_pattern_is_a_reasoning_pattern() -> None:
    with pytest.raises(InvalidRequest, match=r"grader\.pattern"):
        validate(calibrated(pattern=RIGHT))


@pytest.mark.parametrize("wrapping", ["noisy", "debias", "calibrated"])
def test_what_the_held_grader_needs_is_needed(wrapping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = validate(
        {"type": wrapping, "name": "w", "grader": RIGHT, **({"flip": 0.1} if wrapping != "calibrated" else {})}
    )
    assert spec.needs() == frozenset()
    monkeypatch.setattr(GRADERS["string_check"].spec, "needs", lambda self: frozenset({"reference"}))
    assert spec.needs() == {"reference"}


def test_the_examples_of_the_rewards_page_are_graders() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", (ROOT / "docs" / "rewards.md").read_text(), re.MULTILINE | re.DOTALL)
    mine = [value for value in map(json.loads, blocks) if value.get("type") in OF_THIS_KIND]
    assert {value["type"] for value in mine} == OF_THIS_KIND
    assert all(isinstance(validate(value), GraderSpec) for value in mine)


OF_THIS_KIND = {"noisy", "debias", "reasoning_pattern", "calibrated"}
