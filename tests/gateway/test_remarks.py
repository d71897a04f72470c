"""At submission a user is told what the data made of their settings, with the row, and what settings will not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_gateway.models.prompt_tokens import LongestPrompt
from headrace_gateway.operations.remarks import min_completion_tokens, remarks
from headrace_lab.paths import ADDER

from .conftest import Served, body, rows
from .test_envelope import error_of, http
from .test_submission import upload

__all__ = ["http"]  # a fixture

JOBS = "/v1/fine_tuning/jobs"


async def events(served: Served, job_id: str) -> list[tuple[str, str]]:
    return [(event.level, event.message) for _, event in await served.jobs.events(job_id)]


async def test_a_long_row_shortens_completions_and_is_named(client: AsyncOpenAI, served: Served) -> None:
    file = await upload(client, rows(2) + b"\n" + rows(1, "7 " * 150))
    job = await client.fine_tuning.jobs.create(**body(file))
    used = (await served.jobs.get(job.id)).hyperparameters
    ((level, told),) = [event for event in await events(served, job.id) if "max_tokens" in event[1]]
    assert 64 <= used["max_tokens"] < 128
    assert told.startswith(f"max_tokens is {used['max_tokens']} instead of 256: data.jsonl, line 4, has a prompt of ")
    assert level == "warn"


async def test_completions_do_not_collapse_for_one_row(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    """A row of nearly the whole context made every completion one token long, and nobody was told."""
    file = await upload(client, rows(2) + rows(1, "7 " * 220))
    error = error_of(await http.post(JOBS, json=body(file)), 400)
    assert (error["code"], error["param"]) == ("prompt_too_long", "training_file")
    assert "data.jsonl, line 3: the prompt has " in error["message"]
    asked = body(file, hyperparameters={"max_tokens": 2})
    assert (await http.post(JOBS, json=asked)).status_code == 200  # who says so gets it


async def test_a_warm_up_that_does_not_end_is_said(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    settings = {"n_steps": 10, "warmup_steps": 40, "algorithm": "ppo", "critic_warmup_steps": 10}
    job = await client.fine_tuning.jobs.create(**body(training_file, hyperparameters=settings))
    told = [message for level, message in await events(served, job.id) if level == "warn"]
    assert told == [
        "warmup_steps is 40, and the job has 10 steps: the learning rate ends at 25% of what is set",
        "critic_warmup_steps is 10, and the job has 10 steps: "
        "the critic alone is trained, and the policy stays what it is",
    ]


@pytest.mark.parametrize(
    ("changes", "steps", "count"),
    [
        ({}, 10, 0),
        ({"warmup_steps": 9}, 10, 0),
        ({"warmup_steps": 10}, 10, 0),
        ({"warmup_steps": 11}, 10, 1),
        ({"critic_warmup_steps": 9}, 10, 0),
    ],
)
def test_what_is_as_asked_for_is_not_remarked_on(changes: dict[str, Any], steps: int, count: int) -> None:
    settings = Hyperparameters.model_validate({"algorithm": "ppo", "n_steps": steps} | changes)
    assert len(remarks(settings, settings, LongestPrompt(10, "f, line 1"), steps)) == count


@pytest.mark.parametrize(("context", "least"), [(2, 1), (8, 2), (256, 64), (4096, 64)])
def test_the_least_completion(context: int, least: int) -> None:
    assert min_completion_tokens(context) == least


def odd_model(folder: Path, **changes: dict[str, Any]) -> Path:
    """The adder with fields of its JSON files changed, by the stem of the file's name."""
    folder.mkdir()
    for file in (ADDER / "model").iterdir():
        if file.stem in changes:
            content = json.loads(file.read_text()) | changes[file.stem]
            (folder / file.name).write_text(json.dumps(content))
        else:
            (folder / file.name).symlink_to(file)
    return folder


NO_END = {"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": None}}


@pytest.mark.parametrize(
    ("changes", "endless"),
    [
        ({**NO_END, "tokenizer_config": {"eos_token": None}}, True),
        (NO_END, False),
        ({**NO_END, "generation_config": {"eos_token_id": [1]}, "tokenizer_config": {"eos_token": None}}, False),
        ({}, False),
    ],
)
async def test_a_model_without_an_end_token_is_told_of(
    client: AsyncOpenAI, served: Served, training_file: str, tmp_path: Path, changes: dict[str, Any], endless: bool
) -> None:
    folder = odd_model(tmp_path / "modèle à moi 模型", **changes)
    settings = {"n_steps": 3, "max_tokens": 24}
    job = await client.fine_tuning.jobs.create(**body(training_file, model=str(folder), hyperparameters=settings))
    told = [event for event in await events(served, job.id) if "no token that ends a text" in event[1]]
    assert len(told) == endless
    assert all((level, "max_tokens = 24" in message) == ("warn", True) for level, message in told)
