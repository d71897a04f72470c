"""What failed is tried again: a reward that compares completions has the whole group before it each time, one that does
not is asked for those that failed alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.rewards import started
from headrace_rewards.protocol import PolicyMeasurements, Sample, SampleKey
from headrace_rewards.registry import build
from headrace_rollout.reward_scoring import score

LATE = """
calls = {}

def tries(completion):
    calls[completion] = calls.get(completion, 0) + 1
    if "late" in completion and calls[completion] == 1:
        raise ValueError("not yet")
    return float(calls[completion])
"""
OF_GROUP = """
calls = []

def size(completions):
    calls.append(len(completions))
    late = len(calls) == 1
    return [float("nan") if late and "late" in c else 100.0 * len(calls) + len(completions) for c in completions]
"""


def group(*texts: str, number: int = 0) -> list[Sample]:
    return [Sample(text, draw=SampleKey(number, i)) for i, text in enumerate(texts)]


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str, str], dict[str, Any]]:
    def described(source: str, name: str) -> dict[str, Any]:
        (tmp_path / f"{name}.py").write_text(source)
        return {"type": "function", "name": name, "function": f"{tmp_path / name}.py:{name}"}

    return described


def values(outcomes: list[Outcome]) -> list[float]:
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


async def test_a_vote_beside_a_function_that_fails_is_of_the_whole_group(function: Any) -> None:
    graders = {"vote": {"type": "majority_vote", "name": "vote"}, "tries": function(LATE, "tries")}
    multi = {"type": "multi", "name": "both", "graders": graders, "calculate_output": "10 * vote + tries"}
    async with started(build(multi)) as reward:
        texts = ("<answer>8</answer>", "so <answer>8</answer>", "<answer>8</answer>!", *self_styled("7", 2))
        outcomes = await score(reward, group(*texts), attempts=2)
    assert values(outcomes) == [11.0, 11.0, 11.0, 2.0, 2.0], "of the two that failed alone, 7 would be the majority"
    assert {o.components["vote.agreement"] for o in outcomes if isinstance(o, Score)} == {0.6}


def self_styled(answer: str, count: int) -> list[str]:
    """Completions that the function scores at the second try."""
    return [f"late {number} <answer>{answer}</answer>" for number in range(count)]


async def test_a_function_of_one_completion_is_asked_for_those_that_failed_alone(function: Any) -> None:
    async with started(build(function(LATE, "tries"))) as reward:
        assert values(await score(reward, group("a", "late b", "c", "late d"), attempts=3)) == [1.0, 2.0, 1.0, 2.0]
        assert values(await score(reward, group("a", "late b"), attempts=3)) == [2.0, 3.0], "each was asked for once"


async def test_a_function_of_the_group_is_given_all_of_it_again(function: Any) -> None:
    async with started(build(function(OF_GROUP, "size"))) as reward:
        outcomes = await score(reward, group("a", "late b", "c"), attempts=2)
    assert values(outcomes) == [103.0, 203.0, 103.0], "the call it was scored by, and the completions of that call"


async def test_what_fails_each_time_has_failed_and_the_others_keep_their_score(function: Any) -> None:
    never = LATE.replace("calls[completion] == 1", "True")
    async with started(build(function(never, "tries"))) as reward:
        ok, failed = await score(reward, group("a", "late b"), attempts=4)
        assert ok == Score(1.0)
        assert isinstance(failed, Failure)
        assert values(await score(reward, group("late b"), attempts=1)) == []


def measured(number: int, *ps: float, again: bool = False) -> list[Sample]:
    """A group with rewards `ps` under `rlpr`."""
    alone = (math.log(1e-9),)
    return [
        Sample("", draw=SampleKey(number, i), measured=PolicyMeasurements((-1.0,), (math.log(p),), alone), again=again)
        for i, p in enumerate(ps)
    ]


async def test_a_group_that_is_scored_again_counts_once_in_the_average_of_spreads() -> None:
    reward = build({"type": "rlpr", "name": "r"})
    wide, narrow = (0.25, 0.75), (0.4, 0.6)
    assert values(await reward.score(measured(0, *wide))) == pytest.approx(wide)  # spread and average 0.25
    assert await reward.score(measured(1, *narrow)) == [NotApplicable()] * 2  # 0.1 < 0.125; the average is 0.2485
    for _ in range(300):
        assert await reward.score(measured(1, *narrow, again=True)) == [NotApplicable()] * 2, "as the first time"
        assert values(await reward.score(measured(0, *wide, again=True))) == pytest.approx(wide)
    assert await reward.score(measured(2, 0.38, 0.62)) == [NotApplicable()] * 2  # 0.12 < 0.12425
    assert len(values(await reward.score(measured(3, 0.37, 0.63)))) == 2  # 0.13 ≥ 0.1236


async def test_rlpr_beside_a_function_that_fails_says_of_a_group_what_it_said(function: Any) -> None:
    """The spread of those that failed alone would be another, and the average would move twice."""
    graders = {"added": {"type": "rlpr", "name": "added"}, "tries": function(LATE, "tries")}
    multi = {"type": "multi", "name": "both", "graders": graders, "calculate_output": "added + 10 * tries"}

    def texts(samples: list[Sample], *late: int) -> list[Sample]:
        number = samples[0].draw.group if samples[0].draw else 0
        words = [f"{'late' if i in late else 'soon'} {number} {i}" for i in range(len(samples))]
        return [
            Sample(text, draw=sample.draw, measured=sample.measured)
            for text, sample in zip(words, samples, strict=True)
        ]

    async with started(build(multi)) as reward:
        first = await score(reward, texts(measured(0, 0.2, 0.6, 0.6, 0.2), 1, 2), attempts=2)
        assert values(first) == pytest.approx([10.2, 20.6, 20.6, 10.2])
        second = await score(reward, texts(measured(1, 0.5, 0.5, 0.59, 0.59), 0, 3), attempts=2)
        assert values(second) == pytest.approx([20.0, 10.0, 10.0, 20.0]), "left out: the function's part alone"
