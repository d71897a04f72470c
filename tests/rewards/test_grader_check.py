"""`python -m headrace_rewards check`, as the gateway runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace_rewards import grader_check as checking

GRADER = {"type": "function", "name": "g", "function": "user.py:grade", "timeout": 5}
TEXTS = {"input": "{{ sample.output_text }}", "reference": ""}


def check(request: Any, cwd: Path) -> dict[str, Any]:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "headrace_rewards", "check"],
        input=body,
        capture_output=True,
        timeout=60,
        cwd=cwd,
        check=True,
    )
    assert done.stderr == b""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def report(request: Any) -> dict[str, Any]:
    """As `check`, in this process."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    answer: dict[str, Any] = msgspec.to_builtins(await checking.check(body))
    return answer


def test_outcomes_of_samples(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "def grade(completion): return None if completion == '?' else 1 / len(completion)"
    )
    samples = [{"output_text": "ab", "messages": [{"role": "user", "content": "x"}]}, {"output_text": "?"}]
    answer = check({"grader": GRADER, "samples": [*samples, {"output_text": "", "item": {"a": 1}}]}, tmp_path)
    assert answer["ok"] is True
    assert answer["error"] is None
    assert answer["grader"] == {**GRADER, "function": f"{tmp_path}/user.py:grade", "workers": 1, "form": "text"}
    score, skipped, failed = answer["outcomes"]
    assert score == {
        "type": "score",
        "value": 0.5,
        "components": {},
        "sample_fault": "",
        "notes": {},
        "likelihood": None,
    }
    assert skipped == {"type": "not_applicable"}
    assert failed["kind"] == "exception"
    assert failed["message"] == "ZeroDivisionError: division by zero"


def test_groups_are_scored_apart_and_timed(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def grade(completions): return [len(completions)] * len(completions)")
    samples = [{"output_text": text} for text in "abc"]
    answer = check({"grader": GRADER, "samples": samples, "groups": [2, 0, 1]}, tmp_path)
    assert [outcome["value"] for outcome in answer["outcomes"]] == [2.0, 2.0, 1.0]
    assert len(answer["seconds"]) == 2
    assert all(0.0 < seconds < 5.0 for seconds in answer["seconds"])


async def test_groups_are_of_all_samples() -> None:
    samples = [{"output_text": text} for text in "abc"]
    for groups, total in (([2, 2], 4), ([-1, 4], 3)):
        wrong = await report({"grader": GRADER, "samples": samples, "groups": groups})
        assert wrong["error"]["message"] == f"groups add up to {total}, and there are 3 samples"


def test_the_parts_of_a_grader_tell_their_failures(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def grade(completion): return 1 / len(completion)")
    held = {"bad": GRADER, "good": {"type": "string_check", "name": "good", "operation": "eq"} | TEXTS}
    grader = {"type": "multi", "name": "all", "graders": held, "calculate_output": "bad + good"}
    answer = check({"grader": grader, "samples": [{"output_text": ""}]}, tmp_path)
    bad, good, whole = answer["parts"]
    assert (good, whole["name"], whole["type"]) == (
        {"name": "good", "type": "string_check", "failures": []},
        "all",
        "multi",
    )
    assert (bad["type"], bad["failures"][0]["kind"]) == ("function", "exception")
    assert whole["failures"] == [], "its failure is that of the grader it holds"
    assert answer["outcomes"][0]["message"] == f"grader 'bad': {bad['failures'][0]['message']}"


async def test_a_grader_that_is_nested_without_end_is_refused() -> None:
    grader: dict[str, Any] = {"type": "string_check", "name": "m", "operation": "eq"} | TEXTS
    for _ in range(400):
        grader = {"type": "multi", "name": "m", "graders": {"m": grader}, "calculate_output": "m"}
    assert (await report({"grader": grader}))["error"]["message"] == "graders are nested too deep"
    deep = b'{"grader": ' + b'{"graders": ' * 5_000 + b"1" + b"}" * 5_001
    assert "recursion" in (await report(deep))["error"]["message"]


def test_a_file_is_imported_even_without_samples(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def grade(item) return 1")
    answer = check({"grader": GRADER}, tmp_path)
    assert answer["ok"] is False
    assert answer["outcomes"] == []
    assert answer["grader"] is None
    assert answer["error"]["code"] == "invalid_request"
    assert answer["error"]["param"] == "grader.function"
    assert "user.py, line 1: SyntaxError" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        (b"not json", None, "malformed"),
        ({"samples": []}, None, "grader"),
        ({"grader": GRADER, "samples": [{"text": "a"}]}, None, "output_text"),
        ({"grader": {"type": "vibes", "name": "g"}}, "grader.type", "known types"),
    ],
)
def test_a_wrong_request_is_answered(request_: Any, param: str | None, message: str, tmp_path: Path) -> None:
    answer = check(request_, tmp_path)
    assert answer["ok"] is False
    assert answer["error"]["param"] == param
    assert message in answer["error"]["message"]


def test_a_wrong_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headrace_rewards", "verify"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"usage" in done.stderr
