"""The tutorial's files and its how-tos' rewards, written down as they stand there and run."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from headrace_gateway.cli import job_file
from headrace_lab.paths import ROOT
from headrace_lab.services.command_line import headrace

from .test_docs import blocks, scores

TUTORIAL = ROOT / "docs" / "tutorial.md"
OWN_REWARD = ROOT / "docs" / "how-to" / "own-reward.md"


def files(page: Path) -> dict[str, str]:
    """The blocks that begin with their file's name, as a comment."""
    found = [text for language in ("python", "toml") for text in blocks(page, language)]
    return {m[1]: text for text in found if (m := re.match(r"# (\w+\.(?:py|toml))\n", text))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tutorial's reader is after its third step: all files written, the data made."""
    for name, text in files(TUTORIAL).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_data.py")
    return tmp_path


def test_the_tutorial_has_its_three_files() -> None:
    assert set(files(TUTORIAL)) == {"make_data.py", "reward.py", "job.toml"}


def test_its_data_is_data(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 2000
    assert all(sum(map(int, re.findall(r"\d+", row["messages"][0]["content"]))) == int(row["answer"]) for row in rows)


def test_its_check_of_the_reward_runs_and_scores_nothing(folder: Path) -> None:
    [command] = [line for text in blocks(TUTORIAL, "sh") for line in text.splitlines() if "rewards check" in line]
    done = headrace(*shlex.split(command)[1:], COLUMNS="160")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "scored 100.0%" in done.output
    assert "mean 0" in done.output


async def test_its_reward_rewards_the_right_sum(folder: Path) -> None:
    texts = ["6 + 1 <answer> 7 </answer>", "<answer> 8 </answer>", "<answer>7</answer> <answer>7</answer>", "7"]
    samples = [{"output_text": text, "item": {"answer": "7"}} for text in texts]
    assert await scores(folder / "reward.py", "correct", samples) == [1.0, 0.0, 0.0, 0.0]


def test_its_job_uploads_what_the_tutorial_made(folder: Path) -> None:
    told = job_file.read(folder / "job.toml")
    assert {path.name for path in told.uploads.values()} == {"train.jsonl", "validation.jsonl"}
    assert all(path.is_file() for path in told.uploads.values())


async def test_the_how_tos_reward_gives_partial_credit(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(files(OWN_REWARD)["reward.py"])
    samples = [{"output_text": f"it is {n}", "item": {"answer": "93"}} for n in (93, 94, 80)]
    assert await scores(tmp_path / "reward.py", "close", samples) == [1.0, 0.5, 0.0]
