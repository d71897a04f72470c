"""The real model's task: its data is split cleanly, made the same again, and judged by reasoning-gym's verifier."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headrace_core.protocols.grader_check import Score
from headrace_core.storage.dataset import read_rows
from headrace_lab.paths import EXAMPLES, load_module
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample

REAL = EXAMPLES / "real"
NAMES = ("sums", "data", "reward")


@pytest.fixture(scope="module")
def real() -> dict[str, ModuleType]:
    """The example's modules by name."""
    return {name: load_module(REAL / f"{name}.py", REAL / "sums.py") for name in NAMES}


def question(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def solved(row: dict[str, Any]) -> str:
    left, sign, right = re.findall(r"(\d) ([+-]) (\d) =", question(row))[0]
    return str(int(left) + int(f"{sign}{right}"))


def test_no_problem_is_in_two_rows_and_every_answer_is_right(real: dict[str, ModuleType]) -> None:
    train, validation = real["data"].split(0)
    assert len(validation) == 40
    assert len(train) >= 150
    questions = [question(row) for row in train + validation]
    assert len(set(questions)) == len(questions)
    assert all(row["answer"] == solved(row) for row in train + validation)


def test_the_files_follow_from_the_seed_and_are_what_a_job_takes(real: dict[str, ModuleType], tmp_path: Path) -> None:
    once, again, other = (real["data"].write(tmp_path / str(i), seed) for i, seed in enumerate((3, 3, 4)))
    for path, same, different in zip(once, again, other, strict=True):
        assert path.read_bytes() == same.read_bytes()
        assert path.read_bytes() != different.read_bytes()
        written = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row.item["answer"] for row in read_rows(path)] == [row["answer"] for row in written]


def test_every_true_answer_is_worth_one_and_garbage_nothing(real: dict[str, ModuleType]) -> None:
    score = real["reward"].score
    for row in real["data"].split(0)[0]:
        assert score({"output_text": f"The answer is {row['answer']}."}, row) == {"score": 1.0, "correct": 1.0}
        wrong = next(number for number in ("33", "44") if row["answer"] not in number)
        for garbage in ("", "no number", f"{row['answer']} is not right, {wrong} is"):
            assert score({"output_text": garbage}, row) == {"score": 0.0, "correct": 0.0}


@pytest.mark.parametrize(
    ("text", "score", "correct"),
    [
        ("7 - 9 = -2", 1.0, 1.0),
        ("-2", 1.0, 1.0),
        ("2", 0.0, 0.0),
        ("-2 or 3", 0.0, 0.0),
        ("-20", 2 / 3, 0.0),  # the verifier's own partial credit
    ],
)
def test_the_last_number_counts(real: dict[str, ModuleType], text: str, score: float, correct: float) -> None:
    assert real["reward"].score({"output_text": text}, {"answer": "-2"}) == {"score": score, "correct": correct}


async def test_the_verifier_runs_within_the_limits_of_a_reward_process(real: dict[str, ModuleType]) -> None:
    reward = FunctionReward(FunctionSpec(type="function", name="verifier", function=f"{REAL / 'reward.py'}:score"))
    await reward.start()
    try:
        [outcome] = await reward.score([Sample("4 + 4 = 8", {"answer": "8"})])
    finally:
        await reward.close()
    assert outcome == Score(1.0, {"score": 1.0, "correct": 1.0})
