"""A job's reward runs as it was submitted, whatever becomes of its file and its neighbours."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards import grader_check as checking
from headrace_rewards import reward_code
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build

FILES = {
    "reward.py": """
        import os
        from helpers import one
        import parts.deep as deep
        from package import sub
        with open(os.path.join(os.path.dirname(__file__), "words.txt")) as words:
            WORDS = words.read()
        def score(completion):
            import late
            if completion == "raise":
                raise ValueError("as it was")
            return one() + deep.two() + sub.three() + late.four() + len(WORDS)
    """,
    "words.txt": "ab",
    "helpers.py": "def one(): return 1",
    "late.py": "# -*- coding: latin-1 -*-\ndef four(): return 1000",
    "parts/deep.py": "def two(): return 10",
    "package/__init__.py": "",
    "package/sub.py": "from .more import x\nfrom . import other\ndef three(): return x",
    "package/more.py": "x = 100",
    "package/other.py": "",
    "package/idle.py": "raise RuntimeError",
    "idle.py": "raise RuntimeError",
}
KEPT = {name for name in FILES if name.endswith(".py") and "idle" not in name}
RIGHT: list[Outcome] = [Score(1113.0)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of the user's files."""
    folder = tmp_path / "source"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines() if name != "reward.py" else [line[8:] for line in text.splitlines()]
        (folder / name).write_text("\n".join(lines))
    return folder


def grader(source: Path, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": "mine", "function": f"{source}/reward.py:score", "timeout": 10, **fields}


async def submitted(described: Any, code: Path) -> dict[str, Any]:
    """The grader as a job keeps it."""
    request = {"grader": described, "samples": [{"output_text": "a"}], "rules": {"code": str(code)}}
    report: dict[str, Any] = msgspec.to_builtins(await checking.check(json.dumps(request).encode()))
    assert report["ok"], report["error"]
    found: dict[str, Any] = report["grader"]
    return found


async def scored(described: Any, code: Path, text: str = "a") -> list[Outcome]:
    reward = build(described, RewardPermissions(code=str(code)))
    return await score_once(reward, [Sample(text)])


async def test_what_was_submitted_runs_though_the_files_change_and_go(source: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    kept = await submitted(grader(source), code)
    copy = code / kept["sha256"]
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == KEPT
    assert (await scored(kept, code), await scored(grader(source), code)) == (RIGHT, RIGHT)
    for name in KEPT:
        (source / name).write_text("raise RuntimeError('edited')\n")
    assert await scored(kept, code) == RIGHT
    (failed,) = await scored(kept, code, "raise")
    assert f'{source}/reward.py", line 11, in score\n    raise ValueError("as it was")' in failed.traceback  # type: ignore[union-attr]
    for name in KEPT:
        (source / name).unlink()
    assert await scored(kept, code) == RIGHT
    multi = {"type": "multi", "name": "m", "graders": {"a": kept}, "calculate_output": "a"}
    assert await submitted({"type": "noisy", "name": "n", "grader": multi}, code), "as a fork takes it over"


async def test_the_hash_is_that_of_sha256sum(source: Path, tmp_path: Path) -> None:
    kept = await submitted(grader(source), tmp_path / "code")
    program = await asyncio.create_subprocess_exec(
        "sha256sum", *sorted(KEPT), cwd=source, stdout=asyncio.subprocess.PIPE
    )
    lines, _ = await asyncio.wait_for(program.communicate(), 10)
    assert kept["sha256"] == hashlib.sha256(lines).hexdigest()


async def test_a_hash_that_is_asked_for_has_to_be_the_codes(source: Path, tmp_path: Path) -> None:
    kept = await submitted(grader(source), tmp_path / "code")
    assert await submitted(grader(source, sha256=kept["sha256"]), tmp_path / "other") == kept
    (source / "helpers.py").write_text("def one(): return 2")
    for code in (tmp_path / "third", None):
        rules = {} if code is None else {"code": str(code)}
        asked = {"grader": kept, "samples": [{"output_text": "a"}], "rules": rules}
        report = await checking.check(json.dumps(asked).encode())
        assert report.error is not None
        assert "it has changed; leave sha256 out" in report.error.message
        assert report.error.param == "grader.sha256"


async def test_a_copy_that_was_changed_or_has_gone_is_not_run(source: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    kept = await submitted(grader(source), code)
    (code / kept["sha256"] / "helpers.py").write_text("def one(): return 2")
    with pytest.raises(InvalidRequest, match="code was changed in"):
        build(kept, RewardPermissions(code=str(code)))
    with pytest.raises(InvalidRequest, match="has gone from"):
        build(kept, RewardPermissions(code=str(tmp_path)))


def test_the_code_that_is_kept_is_bounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(reward_code.collect(source / "reward.py")) == KEPT
    monkeypatch.setattr(reward_code, "MAX_FILES", 3)
    with pytest.raises(InvalidRequest, match="imports more than 3 files or 8 MiB of code beside it; install it"):
        reward_code.collect(source / "reward.py")


def test_a_file_that_is_not_there_is_refused_without_a_copy(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no file"):
        build(grader(tmp_path))
