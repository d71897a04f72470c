"""A job may name a task where it would name a file: the rows are made, and kept as a file."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from headrace_core.data import read_rows
from headrace_gateway import job_file

from .conftest import Served, body

SUMS = "reasoning_gym:chain_sum?size=4&seed=42&min_terms=2&max_terms=2&answer=whole"


async def test_rows_of_a_task_become_a_file(client: AsyncOpenAI, served: Served) -> None:
    job = await client.fine_tuning.jobs.create(**body(SUMS))
    stored = await client.files.retrieve(job.training_file)
    assert (stored.filename, stored.purpose) == (f"{SUMS}.jsonl", "fine-tune")
    rows = read_rows(served.data_dir / "files" / job.training_file)
    assert len(rows) == (await served.jobs.get(job.id)).rows == 4
    assert {row.item["task"] for row in rows} == {"chain_sum"}
    assert list(served.data_dir.glob(".task-*")) == []


async def test_a_task_that_is_unknown(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    asked = body(training_file, validation_file="reasoning_gym:chain_sums")
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.fine_tuning.jobs.create(**asked)
    assert refusal.value.param == "validation_file"
    assert "close to it: chain_sum" in refusal.value.message
    assert await served.jobs.ids() == []


async def test_a_request_that_is_refused_leaves_no_file(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.fine_tuning.jobs.create(**body(SUMS, grader={"type": "oracle", "name": "o"}))
    assert [file.id async for file in client.files.list()] == []


def test_a_job_file_may_name_a_task(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    grader = 'type = "reasoning_gym"\nname = "verifier"'
    path.write_text(f'model = "m"\ntraining_file = "{SUMS}"\n[grader]\n{grader}\n')
    told = job_file.read(path)
    assert told.body["training_file"] == SUMS
    assert told.uploads == {}
