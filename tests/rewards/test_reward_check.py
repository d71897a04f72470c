"""`python -m headrace_rewards check`, as the gateway runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GRADER = {"type": "function", "name": "g", "function": "user.py:grade", "timeout": 5}


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
    assert score == {"type": "score", "value": 0.5, "components": {}}
    assert skipped == {"type": "not_applicable"}
    assert failed["kind"] == "exception"
    assert failed["message"] == "ZeroDivisionError: division by zero"


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
