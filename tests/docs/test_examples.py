"""The examples of the docs do what their text says: rewards on what the model really writes, commands, graders."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace_core.protocols.grader_check import Failure, NotApplicable, Score
from headrace_lab.paths import ADDER, ROOT
from headrace_lab.services.command_line import headrace
from headrace_rewards.protocol import Sample, SampleKey
from headrace_rewards.registry import GRADERS, build, validate
from headrace_rollout.prompts import Tokenizer

from .test_docs import DOCS, PAGES, blocks, name_of, scores
from .test_tutorial import files

README, TUTORIAL, OWN_REWARD = ROOT / "README.md", DOCS / "tutorial.md", DOCS / "how-to" / "own-reward.md"
ROWS = 32


@dataclass(frozen=True, slots=True)
class Written:
    """What `headrace/tiny-adder` writes, greedily, to held-out rows, and which of it is right."""

    samples: list[dict[str, Any]]
    right: list[bool]


@pytest.fixture(scope="module")
def written() -> Written:
    model = AutoModelForCausalLM.from_pretrained(ADDER / "model")
    tokenizer = AutoTokenizer.from_pretrained(ADDER / "model")
    text_of = Tokenizer(ADDER / "model").text
    samples, right = [], []
    for line in (ADDER / "validation.jsonl").read_text().splitlines()[:ROWS]:
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = text_of(ids.numpy())
        samples.append({"output_text": text, "item": {"answer": row["answer"]}})
        right.append(re.findall(r"<answer> (-?\d+) </answer>", text) == [row["answer"]])
    assert 0.2 * ROWS < sum(right) < 0.9 * ROWS, "right and wrong ones"
    return Written(samples, right)


def reward_of(page: Path, folder: Path) -> Path:
    """The page's reward.py, written down."""
    (folder / "reward.py").write_text(files(page)["reward.py"])
    return folder / "reward.py"


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=name_of)
@pytest.mark.slow
async def test_a_reward_finds_the_right_answers_of_the_model_it_is_for(
    page: Path, written: Written, tmp_path: Path
) -> None:
    assert await scores(reward_of(page, tmp_path), "correct", written.samples) == [float(r) for r in written.right]


@pytest.mark.slow
async def test_the_how_tos_reward_scores_all_that_the_model_writes(written: Written, tmp_path: Path) -> None:
    """A reward that has no opinion of any is one by which nobody learns."""
    found = await scores(reward_of(OWN_REWARD, tmp_path), "close", written.samples)
    assert [score == 1.0 for score in found] == written.right
    assert await scores(tmp_path / "reward.py", "close", [{"output_text": "", "item": {"answer": "93"}}]) == [0.0]


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def checked(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the page's `headrace rewards check` says, run in `folder`."""
    shown = [line for text in blocks(page, "sh") for line in text.splitlines() if "headrace rewards check" in line]
    monkeypatch.chdir(folder)
    done = headrace(*shlex.split(shown[0])[1:], COLUMNS="160")
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize(("page", "mean"), [(README, "mean 0"), (OWN_REWARD, "mean 1")], ids=["readme", "own reward"])
def test_a_reward_is_tried_on_data(page: Path, mean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows hold bare answers: the README's reward wants them between tags, the how-to's does not."""
    reward_of(page, tmp_path)
    (tmp_path / "train.jsonl").write_text((ADDER / "train.jsonl").read_text())
    said = checked(page, tmp_path, monkeypatch)
    assert "scored 100.0%" in said
    assert mean in said


def test_trying_one_on_the_examples_data_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = checked(DOCS / "rewards.md", ROOT, monkeypatch)
    assert "scored 100.0%" in said
    assert "mean 0" in said


def test_the_process_under_it_scores_what_is_piped_into_it() -> None:
    (command,) = [text for text in blocks(DOCS / "rewards.md", "sh") if "-m headrace_rewards check" in text]
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(done.stdout)
    assert report["ok"]
    assert [outcome["value"] for outcome in report["outcomes"]] == [1.0]


# ── graders ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ELSEWHERE = {
    *("function", "registered", "endpoint", "score_model", "label_model", "environment", "reasoning_gym"),
    *("verifree", "jepo", "latro", "rlpr", "self_certainty", "entropy"),
}
"""Types that need a file, a host, a package or the policy: their tests are elsewhere."""


def runnable() -> list[Any]:
    """Every grader written as JSON in the docs, that runs here and now."""
    found = []
    for page in PAGES:
        for number, text in enumerate(blocks(page, "json")):
            value = json.loads(text)
            kinds = set(re.findall(r'"type": "(\w+)"', text))
            if value.get("type") in GRADERS and not kinds & ELSEWHERE:
                found.append(pytest.param(value, id=f"{name_of(page)}-{number}-{value['type']}"))
    return found


@pytest.mark.parametrize("grader", runnable())
async def test_a_grader_scores_and_prefers_the_right_answer(grader: dict[str, Any]) -> None:
    """On the answer and on another number, in training; majority votes have two right ones to go by."""
    validate(grader)
    texts = ("93", "93", "8") if grader["type"] != "math_verify" else (r"\boxed{93}", r"\boxed{93}", r"\boxed{8}")
    reward = build(without_noise(grader))
    await reward.start()
    try:
        samples = [Sample(text, {"answer": "93"}, draw=SampleKey(0, n)) for n, text in enumerate(texts)]
        outcomes = await reward.score(samples)
    finally:
        await reward.close()
    assert not [o for o in outcomes if isinstance(o, Failure | NotApplicable)], outcomes
    values = [o.value for o in outcomes if isinstance(o, Score)]
    assert values[0] == values[1] >= values[2]


def without_noise(value: Any) -> Any:
    """The same grader, of which nothing is flipped."""
    if isinstance(value, dict):
        return {k: 0.0 if k == "flip" and value.get("type") == "noisy" else without_noise(v) for k, v in value.items()}
    return [without_noise(v) for v in value] if isinstance(value, list) else value


def test_enough_of_them_run() -> None:
    assert len(runnable()) >= 10
