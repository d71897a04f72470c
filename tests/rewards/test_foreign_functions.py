"""Functions written for TRL, verl, OpenRLHF, verifiers and OpenAI run unchanged, in the processes that run a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace_core.protocols.grader_check import NotApplicable, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build

FILE = Path(__file__).parent / "foreign_rewards.py"
ROW = {"answer": "42", "task": "short", "data_source": "toy/sums", "reward_model": {"ground_truth": "42"}}
QUESTION = [{"role": "system", "content": "Add."}, {"role": "user", "content": "40+2="}]
RIGHT = Sample("42", ROW, QUESTION, token_ids=(4, 2))
WRONG = Sample("7", ROW, QUESTION, token_ids=(7,))
TURNS = {"num_turns": 2.0}
ZERO_ONE: list[Outcome] = [Score(1.0), Score(0.0)]


async def scored(function: str, *samples: Sample, form: str = "text") -> list[Outcome]:
    reward = build({"type": "function", "name": "theirs", "function": f"{FILE}:{function}", "form": form})
    return await score_once(reward, samples)


@pytest.mark.parametrize(
    ("function", "form", "expected"),
    [
        ("trl_text", "text", ZERO_ONE),
        (
            "trl_conversational",
            "messages",
            [Score(1.0, {"share": 0.5}, notes={"said": "42"}), Score(0.0, {"share": 0.5}, notes={"said": "7"})],
        ),
        ("trl_by_tokens", "text", [Score(0.5), Score(1.0)]),
        ("trl_async", "text", [Score(1.0, {"asked": 2.0}), Score(0.0, {"asked": 2.0})]),
        ("trl_object", "text", [Score(0.5), Score(0.5)]),
        (
            "verl_score",
            "text",
            [
                Score(1.0, {"score": 1.0, "acc": 1.0, **TURNS}, notes={"pred": "42"}),
                Score(0.0, {"score": 0.0, "acc": 0.0, **TURNS}, notes={"pred": "7"}),
            ],
        ),
        ("verl_async", "text", ZERO_ONE),
        ("verl_passes_on", "text", ZERO_ONE),
        ("verl_batch", "text", ZERO_ONE),
        (
            "openrlhf_tensors",
            "text",
            [
                Score(0.5, {"score": 0.5, "scores": 1.0, "share": 0.5}),
                Score(-0.5, {"score": -0.5, "scores": 0.0, "share": 0.5}),
            ],
        ),
        ("openrlhf_list", "text", ZERO_ONE),
        ("verifiers_exact", "messages", ZERO_ONE),
        ("verifiers_parser", "messages", ZERO_ONE),
        ("verifiers_async", "messages", [Score(0.5), Score(0.5)]),
        ("verifiers_group", "messages", ZERO_ONE),
        ("grade", "text", ZERO_ONE),
    ],
)
async def test_it_runs_unchanged(function: str, form: str, expected: list[Outcome]) -> None:
    assert await scored(function, RIGHT, WRONG, form=form) == expected


async def test_not_applicable_is_told_from_zero() -> None:
    other: dict[str, Any] = {**ROW, "task": "long", "answer": ""}
    assert await scored("trl_by_tokens", RIGHT, Sample("7", other, QUESTION, token_ids=(7,))) == [
        Score(0.5),
        NotApplicable(),
    ]
