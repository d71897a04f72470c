"""Texts beside a score: kept, valid, and bounded, whatever gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import NotApplicable, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import build
from headrace_rewards.user_code.notes import MAX_BYTES, MAX_CALL_BYTES, bounded, notes_of
from headrace_rewards.user_code.return_values import to_outcome, to_outcomes


def size(notes: dict[str, str]) -> int:
    return sum(len(name.encode()) + len(text.encode()) for name, text in notes.items())


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"a": "x", "b": 1.0, "c": None, "d": ["x"], 5: "five"}, {"a": "x", "5": "five"}),
        ({"a": "", "b": "y"}, {"a": "", "b": "y"}),
        ({"a": "half \ud800 a pair"}, {"a": "half ? a pair"}),
        ({"a": "x" * 3000, "b": "y"}, {"a": "x" * (MAX_BYTES - 4) + "…"}),
        ({"a": "日" * 3000}, {"a": "日" * 665 + "…"}),
        ({"n" * 3000: "y"}, {"n" * 100: "y"}),
    ],
)
def test_texts_are_kept_within_a_bound(values: dict[Any, Any], kept: dict[str, str]) -> None:
    assert notes_of(values) == kept
    assert size(kept) <= MAX_BYTES


def test_a_call_is_bounded_too() -> None:
    outcomes: list[Outcome] = [Score(1.0, notes=notes_of({"a": "x" * 3000})) for _ in range(500)]
    found = bounded([*outcomes, NotApplicable(), Score(0.0)])
    notes = [outcome.notes for outcome in found if isinstance(outcome, Score)]
    assert 0.9 * MAX_CALL_BYTES < sum(map(size, notes)) <= MAX_CALL_BYTES
    assert len({note["a"] for note in notes[:-1]}) == 1
    assert (found[-2], notes[-1]) == (NotApplicable(), {})
    assert bounded(outcomes[:3]) == outcomes[:3]


def test_texts_beside_a_score_are_notes() -> None:
    """verl's functions return a dict with the prediction, OpenRLHF's columns of them."""
    assert to_outcome({"score": 1.0, "pred": "4", "acc": True}) == Score(
        1.0, {"score": 1.0, "acc": 1.0}, notes={"pred": "4"}
    )
    logs = {"rewards": [1.0, 0.0], "extra_logs": {"pred": ["4", "5"]}}
    assert [o.notes for o in to_outcomes(logs, 2) if isinstance(o, Score)] == [{"pred": "4"}, {"pred": "5"}]


async def test_they_come_through_processes_and_graders_that_hold_others(tmp_path: Path) -> None:
    source = """
def grade(completions, log_extra, **kwargs):
    log_extra("said", completions)
    log_extra("pieces", [completion.split() for completion in completions])
    return [1.0 if completion else None for completion in completions]
"""
    (tmp_path / "reward.py").write_text(source)
    function = {"type": "function", "name": "f", "function": f"{tmp_path}/reward.py:grade"}
    noisy = {"type": "noisy", "name": "n", "grader": function, "flip": 0.0}
    multi = {"type": "multi", "name": "m", "graders": {"part": noisy}, "calculate_output": "part"}
    reward = build(multi, RewardPermissions())
    outcomes = await score_once(
        reward, [Sample(text, draw=SampleKey(0, n)) for n, text in enumerate(("six by seven", ""))]
    )
    found, none = outcomes
    assert isinstance(found, Score)
    assert found.notes == {"part.said": "six by seven", "part.pieces": "['six', 'by', 'seven']"}
    assert isinstance(none, NotApplicable)
