"""`headrace rewards check`: a reward tried on data by the real command, without any gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import HeadraceError, InvalidData
from headrace_core.protocols.grader_check import CheckReport, Failure, NotApplicable, Outcome, Score
from headrace_gateway.cli.reward_trial import read, summary
from headrace_lab.services import command_line

REWARDS = """
def exact(completion, answer):
    if answer == "?":
        return None
    return {"score": float(completion == answer), "length": len(completion)}

def strict(completion, answer):
    assert completion, "nothing was written"
    return 1 / (len(completion) - 2)

def best(completions, answer):
    return [float(len(c) == max(map(len, completions))) for c in completions]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reward.py").write_text(REWARDS)
    messages = [{"role": "user", "content": "37 + 56 ="}]
    rows = [{"messages": messages, "answer": a, "guesses": [a, "[b]no[/b]"]} for a in ("9", "?", "93")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def headrace(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """(exit status, what it printed) of `headrace rewards check`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    done = subprocess.run(
        [sys.executable, "-m", "headrace_gateway", "rewards", "check", *arguments],
        cwd=folder,
        env=environment | {"COLUMNS": "120"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_reward_that_works(folder: Path) -> None:
    status, said = headrace(folder, "reward.py:exact", "--data", "data.jsonl")
    assert status == 0, said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[1].startswith("1 9 1 ")
    assert lines[1].endswith("score 1, length 1")
    assert lines[2].startswith("2 ? not applicable ")
    assert lines[4].startswith("1 (empty) 0 ")
    assert "completions 3, of the rows' key 'answer', and an empty one: 0" in lines
    assert "outcomes scored 66.7%, not applicable 33.3%, failed 0.0%" in lines
    assert "score mean 1, standard deviation 0, from 1 to 1" in lines
    assert any(line.startswith("time p50 ") and line.endswith("ms a row") for line in lines)


def test_a_mean_of_0_is_told_what_it_may_mean(folder: Path) -> None:
    (folder / "zero.py").write_text("def never(completion): return 0.0")
    status, said = headrace(folder, "zero.py:never", "--data", "data.jsonl")
    assert status == 0, said
    assert "mean 0, standard deviation 0, from 0 to 0" in said
    assert "every score is 0: either all these completions are wrong, or the reward looks for what they do not" in said
    assert "every score is 0" not in headrace(folder, "reward.py:exact", "--data", "data.jsonl")[1]


def test_errors_are_counted_shown_and_the_exit_status(folder: Path) -> None:
    status, said = headrace(folder, "reward.py:strict", "--data", "data.jsonl")
    assert status == 1
    assert "an empty one: exception" in said
    assert "failed 33.3% (exception 1)" in said
    assert "ZeroDivisionError" in said
    assert "in strict" in said


def test_a_grader_in_a_file_on_groups_of_a_file(folder: Path, tmp_path: Path) -> None:
    (folder / "graders").mkdir()
    (folder / "graders" / "best.py").write_text(REWARDS)
    grader = {"type": "multi", "name": "m", "calculate_output": "2 * best"}
    held = {"best": {"type": "function", "name": "best", "function": "best.py:best"}}
    (folder / "graders" / "g.json").write_text(json.dumps(grader | {"graders": held}))
    (folder / "texts.jsonl").write_text('["a", "bb", "cc"]\n"one"\n')
    options = ("--grader", "graders/g.json", "--completions", "texts.jsonl", "--limit", "2")
    status, said = headrace(folder, "--data", "data.jsonl", *options)
    assert status == 0, said
    assert "4, of texts.jsonl, and an empty one: 2" in said
    assert "mean 1.5," in said


@pytest.mark.parametrize(
    ("arguments", "sandbox", "message"),
    [
        (["reward.py:missing", "--data", "data.jsonl"], "limits", "it has: exact, strict, best"),
        (["reward.py:exact", "--data", "data.jsonl"], "none", "HEADRACE_REWARD_SANDBOX: Input should be"),
        (["--data", "data.jsonl"], "limits", "name one reward"),
        (["a.py:b", "--grader", "data.jsonl", "--data", "data.jsonl"], "limits", "name one reward"),
        (["--grader", "data.jsonl", "--data", "data.jsonl"], "limits", "data.jsonl: not JSON"),
        (["--grader", "none.json", "--data", "data.jsonl"], "limits", "none.json: No such file"),
    ],
)
def test_what_cannot_be_tried_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sandbox: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HEADRACE_REWARD_SANDBOX", sandbox)
    tried = command_line.headrace("rewards", "check", *arguments)
    assert tried.exit_code == 1
    assert isinstance(tried.exception, HeadraceError)
    assert message in tried.exception.message


def test_which_completions_are_taken(folder: Path) -> None:
    data = folder / "data.jsonl"
    assert read(data, None, 2).completions == [["9"], ["?"]]
    tried = read(data, "guesses", 2)
    assert tried.groups == [2, 2, 1]
    assert [s["output_text"] for s in tried.samples] == ["9", "[b]no[/b]", "?", "[b]no[/b]", ""]
    assert tried.samples[-1]["item"] == tried.rows[0].item
    data.write_text('{"messages": [{"role": "user", "content": "?"}], "answer": 93, "response": 9.5}\n')
    assert read(data, None, 5).completions == [["9.5"]]
    assert read(data, "answer", 5).completions == [["93"]]


@pytest.mark.parametrize(
    ("row", "completions", "message"),
    [
        ({"solution": "9"}, None, "one of completion, response, answer"),
        ({"solution": "9"}, "answers", "'answers' is neither a file nor a key of every row; those are solution"),
        ({"answer": {"text": "9"}}, None, "the rows' key 'answer', row 1: a completion is a text"),
        ({"answer": []}, None, "a completion is a text"),
        ({}, "wrong.jsonl", "wrong.jsonl, line 2: not JSON"),
        ({}, "short.jsonl", "has 0 completions, and .* 1 rows"),
    ],
)
def test_completions_that_are_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], completions: str | None, message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "data.jsonl").write_text(json.dumps(row | {"messages": [{"role": "user", "content": "?"}]}) + "\n")
    (folder / "wrong.jsonl").write_text('"a"\nb\n')
    (folder / "short.jsonl").write_text("\n")
    with pytest.raises(InvalidData, match=message):
        read(folder / "data.jsonl", completions, 10)
    with pytest.raises(InvalidData, match="No such file"):
        read(folder / "none.jsonl", completions, 10)


def test_figures_of_a_summary() -> None:
    late, broken = Failure("timeout", "a"), Failure("exception", "b")
    scores = [Score(v) for v in (0.0, 1.0)]
    outcomes: list[Outcome] = [*scores, NotApplicable(), late, broken, late, Failure("crashed", "")]
    found = summary(CheckReport(True, None, {}, outcomes, [0.3, 0.1, 0.2, 9.0], []))
    assert (found.mean, found.deviation, found.share(len(found.scores))) == (0.5, 0.5, 2 / 6)
    assert (found.quantile(0.5), found.quantile(0.95)) == (0.2, 0.3)
    assert (found.not_applicable, found.kinds) == (1, {"timeout": 2, "exception": 1})
    assert {failure.kind for failure in found.failed} == {"timeout", "exception", "crashed"}
