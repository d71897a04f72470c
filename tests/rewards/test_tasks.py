"""reasoning-gym's tasks: their files, and their verifiers in host processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_core.storage.dataset import read_rows
from headrace_lab.rewards import started
from headrace_rewards.protocol import Reward, Sample
from headrace_rewards.registry import build
from headrace_rewards.tasks import dataset_file, gym_dataset
from headrace_rewards.tasks.answer_extraction import answer_in
from headrace_rewards.tasks.file_names import reject_paths
from headrace_rewards.tasks.task_reference import TaskReference

STRINGS = "reasoning_gym:isomorphic_strings?size=20&seed=7&min_string_length=3"
"""A task that goes through sets of strings, whose order is of the process."""
COMMAND = (sys.executable, "-m", "headrace_rewards", "tasks")


async def made(path: Path, hash_seed: str) -> dict[str, Any]:
    question = json.dumps({"reference": STRINGS, "path": str(path), "max_bytes": 100_000}).encode()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=os.environ | {"PYTHONHASHSEED": hash_seed}
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate(question)
    assert process.returncode == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Made of the same reference, in two processes."""
    folder = tmp_path_factory.mktemp("tasks")
    paths = folder / "first", folder / "second"
    reports = await asyncio.gather(*(made(path, seed) for path, seed in zip(paths, "12", strict=True)))
    assert reports == [{"ok": True, "error": None, "rows": 20}] * 2
    return paths


def test_the_same_reference_gives_the_same_bytes(files: tuple[Path, Path]) -> None:
    first, second = files
    assert first.read_bytes() == second.read_bytes()


def test_a_row_has_what_the_verifier_needs(files: tuple[Path, Path]) -> None:
    rows = read_rows(files[0])
    assert len({row.item["question"] for row in rows}) == 20
    (message,) = rows[0].messages
    assert message["content"] == f"{rows[0].item['question']}\n\nWrite the final answer between <answer> and </answer>."
    assert set(rows[0].item) == {"messages", "task", "question", "answer", "metadata"}
    assert rows[0].item["task"] == "isomorphic_strings"


def test_seeds_draw_rows_of_their_own() -> None:
    """reasoning-gym itself would give two neighbouring seeds the same rows but one."""
    seen = [
        row["question"]
        for seed in (1, 2)
        for row in gym_dataset.rows(TaskReference("reasoning_gym", "chain_sum", {}, 50, seed, "whole", None))
    ]
    assert len(set(seen)) == 100


def test_a_system_message_and_another_place_for_the_answer() -> None:
    (row,) = gym_dataset.rows(TaskReference("reasoning_gym", "chain_sum", {}, 1, 0, "whole", "Be brief."))
    assert row["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["question"]}]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("reasoning_gym:chain_sums", "no task 'chain_sums'; close to it: chain_sum"),
        ("reasoning_gym:composite", "no task 'composite'"),
        ("reasoning_gym:chain_sum?min_term=2", "no parameter 'min_term'; close to it: min_terms"),
        ("reasoning_gym:chain_sum?min_terms=5&max_terms=2", "does not take these parameters: max_terms must be >="),
        ("reasoning_gym:chain_sum?min_terms=many", "does not take these parameters: '>' not supported"),
    ],
)
def test_what_cannot_be_made_says_why(reference: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        list(gym_dataset.rows(TaskReference.parse(reference)))
    assert said in refusal.value.message


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("w") as file, pytest.raises(InvalidRequest, match="2 rows are beyond 30 bytes"):
        dataset_file.write(file, iter([{"n": "0123456789"}] * 3), 30)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("reasoning_gym:spell_backward?data_file={secret}", "'data_file' names a file"),
        ("reasoning_gym:spell_backward?data_file=words.txt", "'data_file' is for a file"),
        ("reasoning_gym:spell_backward?data_file=../../../etc/passwd", "'data_file' names a file"),
        ('reasoning_gym:chain_sum?operators=["%2B","{secret}"]', "'operators' names a file"),
        ('verifiers:nothing?options={{"a":["~/x"]}}', "'options' names a file"),
        ("verifiers:nothing?source=file:///etc/passwd", "'source' names a file"),
    ],
)
def test_a_parameter_that_names_a_file_is_refused(tmp_path: Path, reference: str, said: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n" * 100)
    question = {"reference": reference.format(secret=secret), "path": str(tmp_path / "rows"), "max_bytes": 100_000}
    done = subprocess.run(COMMAND, input=json.dumps(question).encode(), capture_output=True, timeout=120, check=True)
    assert said in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("operators", ['["/"]', '["%2B","/","*"]'])
def test_a_stroke_alone_is_no_file(tmp_path: Path, operators: str) -> None:
    reject_paths(TaskReference.parse(f"reasoning_gym:chain_sum?operators={operators}").parameters, "x")
    reject_paths({"dataset": "openai/gsm8k", "text": "1/2 of ... it", "n": 3}, "x")


@pytest.mark.slow
def test_what_a_task_does_it_does_in_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that reads what it likes and speaks to whom it likes, though no parameter names it."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "secret").chmod(0o644)
    (tmp_path / "packages" / "nosy_words.py").write_text(_NOSY.replace("SECRET", str(tmp_path / "secret")))
    question = {"reference": "verifiers:nosy-words?size=1", "path": str(tmp_path / "rows"), "max_bytes": 100_000}
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "HEADRACE_SECRET": "hunter2"}
    done = subprocess.run(
        COMMAND, input=json.dumps(question).encode(), capture_output=True, timeout=120, check=True, env=env
    )
    assert json.loads(done.stdout)["ok"], done.stdout + done.stderr[-2000:]
    [row] = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert row["info"] == {"file": "refused", "network": "refused", "environment": False}


_NOSY = """
import os, socket
import verifiers as vf
from datasets import Dataset

def tried(act):
    try: act()
    except OSError: return "refused"
    return "open"

def load_environment():
    info = {"file": tried(lambda: open("SECRET")), "network": tried(lambda: socket.socket())}
    info["environment"] = "hunter2" in str(os.environ)
    rows = [{"question": "?", "answer": "!", "info": info}]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[lambda answer: 1.0]))
"""


def test_a_reference_is_read() -> None:
    read = TaskReference.parse(
        "reasoning_gym:x?size=3&a=2&b=[1,2]&c=true&d=word&e=&system=Be%20brief.&answer=last_line"
    )
    assert read == TaskReference(
        "reasoning_gym", "x", {"a": 2, "b": [1, 2], "c": True, "d": "word", "e": ""}, 3, 0, "last_line", "Be brief."
    )


@pytest.mark.parametrize(
    "text",
    [
        "chain_sum",
        "other:chain_sum",
        "reasoning_gym:",
        "reasoning_gym:x?size=0",
        "reasoning_gym:x?size=100001",
        "reasoning_gym:x?size=1.5",
        "reasoning_gym:x?seed=-1",
        "reasoning_gym:x?answer=box",
        "reasoning_gym:x?a=1&a=2",
        "reasoning_gym:x?a",
    ],
)
def test_a_reference_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidRequest):
        TaskReference.parse(text)


@pytest.mark.parametrize(
    ("text", "tag", "last_line", "whole"),
    [
        ("I think\n<answer> 5 </answer>", "5", "<answer> 5 </answer>", "I think\n<answer> 5 </answer>"),
        ("<answer>4</answer> no, <answer>5</answer>\n6\n", "5", "6", "<answer>4</answer> no, <answer>5</answer>\n6"),
        ("<answer>5", None, "<answer>5", "<answer>5"),
        ("5</answer>", None, "5</answer>", "5</answer>"),
        ("<answer></answer>", None, "<answer></answer>", "<answer></answer>"),
        (" \n", None, None, None),
    ],
)
def test_where_the_answer_stands(text: str, tag: str | None, last_line: str | None, whole: str | None) -> None:
    assert (answer_in(text, "tag"), answer_in(text, "last_line"), answer_in(text, "whole")) == (tag, last_line, whole)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def verifier() -> AsyncIterator[Reward]:
    reward = build({"type": "reasoning_gym", "name": "verifier"})
    async with started(reward):
        yield reward


def values(outcomes: list[Outcome]) -> list[float | str]:
    return [o.value if isinstance(o, Score) else getattr(o, "kind", "none") for o in outcomes]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_tasks_own_verifier_scores(verifier: Reward, files: tuple[Path, Path]) -> None:
    row = read_rows(files[0])[0].item
    texts = [f"<answer>{row['answer']}</answer>", "<answer>x</answer>", row["answer"], ""]
    assert values(await verifier.score([Sample(text, row) for text in texts])) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_that_the_verifier_trips_over_is_wrong(verifier: Reward) -> None:
    row = {"task": "prime_factorization", "question": "?", "answer": "2 × 3", "metadata": {"factors": [2, 3]}}
    texts = ["<answer>2 × 3</answer>", "<answer>two</answer>"]
    assert values(await verifier.score([Sample(text, row) for text in texts])) == [1.0, 0.0]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_that_is_of_no_task_failed(verifier: Reward) -> None:
    row = {"task": "chain_sum", "question": "?", "answer": "5", "metadata": {}}
    lacking, unknown = await verifier.score([Sample("5", {"answer": "5"}), Sample("5", row | {"task": "nothing"})])
    assert lacking == Failure("bad_input", "the row has no question, metadata, task: it is not of a reasoning-gym file")
    assert isinstance(unknown, Failure)
    assert "no task 'nothing'" in unknown.message


async def test_an_unknown_task_is_refused_at_the_start() -> None:
    reward = build({"type": "reasoning_gym", "name": "verifier", "task": "chain_sums"})
    with pytest.raises(InvalidRequest, match="close to it: chain_sum"):
        await reward.start()


SLOW = {"knight_swap", "arc_agi", "zebra_puzzles", "rubiks_cube", "puzzle24"}
"""They take a second or more for a row."""


@pytest.mark.parametrize("task", sorted(set(gym_dataset.TASKS) - SLOW))
def test_every_task_scores_its_rows_as_before_json(task: str) -> None:
    (row,) = gym_dataset.rows(TaskReference("reasoning_gym", task, {}, 1, 3))
    read = json.loads(json.dumps(row, default=dataset_file.plain))
    verify = gym_dataset.reasoning_gym.get_score_answer_fn(task)
    for answer in (row["answer"], "1", None):
        try:
            before = float(verify(answer, {key: row[key] for key in ("question", "answer", "metadata")}))
        except Exception:  # the verifier trips over what it is given
            before = 0.0
        assert gym_dataset.scorer(task)(answer, read) == before
