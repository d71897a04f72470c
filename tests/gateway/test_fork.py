"""Forks: a new job from a checkpoint of another one, checked as a submission is."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import TypeAdapter

from headrace_core.types.job import Checkpoint, Job, model_name
from headrace_gateway.schemas.job_answers import JobObject
from headrace_lab.paths import ADDER

from .conftest import GRADER, Served, body, rows

SETTINGS = {"n_steps": 30, "max_staleness": 3, "learning_rate": 2e-5}


@pytest.fixture
async def parent(served: Served, client: AsyncOpenAI, training_file: str) -> Job:
    """A job with checkpoints after steps 2 and 4."""
    metadata = {"team": "arithmetic"}
    asked = body(training_file, validation_file=training_file, suffix="carry", metadata=metadata)
    asked["method"]["reinforcement"]["hyperparameters"] |= SETTINGS
    job = await served.jobs.get((await client.fine_tuning.jobs.create(**asked)).id)
    for step in (2, 4):
        await add_checkpoint(served, job, step)
    return job


async def add_checkpoint(served: Served, job: Job, step: int) -> None:
    folder = served.data_dir / "jobs" / job.id / "checkpoints" / f"step-{step}"
    copytree(ADDER / "model", folder / "model")
    await served.jobs.add_checkpoint(
        job.id, Checkpoint(f"ftckpt_{step}", 5.0, step, model_name(job, step), str(folder))
    )


async def forked(served: Served, parent: Job, asked: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        return await http.post(f"/v1/fine_tuning/jobs/{parent.id}/fork", json=asked, headers=headers)


async def made(served: Served, parent: Job, asked: dict[str, Any]) -> Job:
    answer = await forked(served, parent, asked)
    assert answer.status_code == 200, answer.text
    TypeAdapter(JobObject).validate_python(answer.json())
    return await served.jobs.get(answer.json()["id"])


async def refused(served: Served, parent: Job, asked: dict[str, Any]) -> dict[str, Any]:
    before = await served.jobs.ids()
    answer = await forked(served, parent, asked)
    assert answer.status_code == 400, answer.text
    assert await served.jobs.ids() == before
    error: dict[str, Any] = answer.json()["error"]
    assert "method.reinforcement" not in error["message"] + (error["param"] or "")
    return error


async def test_a_fork_is_its_parent_from_the_newest_checkpoint(served: Served, parent: Job) -> None:
    answer = (await forked(served, parent, {})).json()
    assert answer["forked_from"] == {"fine_tuning_job_id": parent.id, "checkpoint": "ftckpt_4", "step_number": 4}
    assert answer["model"] == model_name(parent, 4)
    job = await served.jobs.get(answer["id"])
    assert job.model_path == f"{served.data_dir}/jobs/{parent.id}/checkpoints/step-4/model"
    for same in ("hyperparameters", "grader", "training_file", "validation_file", "suffix", "metadata", "total_steps"):
        assert getattr(job, same) == getattr(parent, same), same
    assert job.id in served.controllers.ensured
    told = [event.message for _, event in await served.jobs.events(job.id)]
    assert told[0].endswith(f"from step 4 of {parent.id}")


async def test_a_job_that_is_no_fork_says_so(served: Served, client: AsyncOpenAI, parent: Job) -> None:
    assert (await client.fine_tuning.jobs.retrieve(parent.id)).to_dict()["forked_from"] is None


async def test_changes_are_made_and_the_rest_stays(served: Served, client: AsyncOpenAI, parent: Job) -> None:
    other = (await client.files.create(file=("more.jsonl", rows(4)), purpose="fine-tune")).id
    changes = {"max_staleness": 1, "group_size": 4}
    grader = {**GRADER, "operation": "like"}
    job = await made(
        served, parent,
        {"checkpoint": "ftckpt_2", "hyperparameters": changes, "suffix": "tight", "metadata": {}, "grader": grader,
         "training_file": other, "validation_file": None},
    )  # fmt: skip
    assert job.hyperparameters == parent.hyperparameters | changes
    assert (job.suffix, job.metadata, job.training_file, job.validation_file) == ("tight", {}, other, None)
    assert job.grader == parent.grader | {"operation": "like"}
    assert job.forked_from is not None
    assert job.forked_from.step_number == 2


async def test_what_is_given_instead_of_another_takes_its_place(served: Served, parent: Job) -> None:
    job = await made(served, parent, {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 3.0}})
    found = [job.hyperparameters[name] for name in ("n_steps", "n_epochs", "learning_rate_multiplier")]
    assert found == [None, 2, None]
    assert job.hyperparameters["learning_rate"] == pytest.approx(3e-5)
    assert job.total_steps == 4  # two epochs of 8 rows, 4 a step


@pytest.mark.parametrize("changes", [{"n_steps": 200}, {"n_epochs": 50, "batch_size": 2}])
async def test_intervals_follow_the_length_unless_they_were_set(
    served: Served, parent: Job, changes: dict[str, Any]
) -> None:
    found = [parent.hyperparameters[name] for name in ("eval_interval", "checkpoint_interval")]
    assert (parent.total_steps, found) == (30, [3, 6])
    longer = await made(served, parent, {"hyperparameters": changes})
    found = [longer.hyperparameters[name] for name in ("eval_interval", "checkpoint_interval")]
    assert (longer.total_steps, found) == (200, [20, 40])
    often = await made(served, parent, {"hyperparameters": {"eval_interval": 7}})
    await add_checkpoint(served, often, 6)
    longer = await made(served, often, {"hyperparameters": changes})
    found = [longer.hyperparameters[name] for name in ("eval_interval", "checkpoint_interval")]
    assert found == [7, 40]


async def test_another_algorithm_brings_its_defaults(served: Served, parent: Job) -> None:
    dapo = await made(served, parent, {"hyperparameters": {"algorithm": "dapo", "clip_low": 0.1}})
    found = [dapo.hyperparameters[name] for name in ("clip_high", "filter_groups", "minibatches", "clip_low")]
    assert found == [0.28, True, 4, 0.1]
    await add_checkpoint(served, dapo, 6)
    back = await made(served, dapo, {"hyperparameters": {"algorithm": "grpo"}})
    found = [back.hyperparameters[name] for name in ("clip_high", "filter_groups", "minibatches", "clip_low")]
    assert found == [0.2, False, 1, 0.1]
    assert back.model == model_name(dapo, 6)


async def test_a_job_without_a_checkpoint(served: Served, client: AsyncOpenAI, training_file: str) -> None:
    job = await served.jobs.get((await client.fine_tuning.jobs.create(**body(training_file))).id)
    error = await refused(served, job, {})
    assert (error["param"], error["code"]) == ("checkpoint", "no_checkpoint")
    assert "wait for its first one" in error["message"]
    await served.jobs.move(job.id, "cancelled")
    assert "submit a new job" in (await refused(served, job, {}))["message"]


async def test_a_checkpoint_of_another_name(served: Served, parent: Job) -> None:
    error = await refused(served, parent, {"checkpoint": "ftckpt_9"})
    assert (error["param"], error["code"]) == ("checkpoint", "checkpoint_not_found")
    assert "ftckpt_4 (step 4), ftckpt_2 (step 2)" in error["message"]


async def test_a_checkpoint_whose_folder_is_gone(served: Served, parent: Job) -> None:
    (served.data_dir / "jobs" / parent.id / "checkpoints" / "step-4").rename(served.data_dir / "elsewhere")
    error = await refused(served, parent, {})
    assert (error["param"], error["code"]) == ("checkpoint", "model_not_found")
    assert "step-2" in error["message"]


@pytest.mark.parametrize(
    ("asked", "param", "hint"),
    [
        ({"hyperparameters": {"max_stalenes": 1}}, "hyperparameters.max_stalenes", "did you mean 'max_staleness'?"),
        ({"hyperparameters": {"max_staleness": -1}}, "hyperparameters.max_staleness", "greater than or equal to 0"),
        ({"hyperparameters": {"algorithm": "zen"}}, "hyperparameters.algorithm", "grpo"),
        ({"hyperparameters": {"algorithm": ["zen"]}}, "hyperparameters.algorithm", "string"),
        ({"hyperparameters": {"n_steps": 2, "n_epochs": 2}}, "hyperparameters", "n_steps or n_epochs"),
        ({"hyperparameters": {"max_tokens": 2048}}, "hyperparameters", "max_context"),
        ({"hyperparameters": 3}, "hyperparameters", "dictionary"),
        ({"training_file": "file-none"}, "training_file", "file-none"),
        ({"grader": {"type": "oracle"}}, "grader", "oracle"),
        ({"suffix": "a b"}, "suffix", "pattern"),
        ({"seed": 1}, "seed", "unknown name"),
    ],
)
async def test_what_is_wrong_is_named(
    served: Served, parent: Job, asked: dict[str, Any], param: str, hint: str
) -> None:
    error = await refused(served, parent, asked)
    assert (error["param"] or "").startswith(param)
    assert hint in error["message"]


async def test_no_such_job(served: Served, parent: Job) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.post("/v1/fine_tuning/jobs/ftjob-none/fork", json={})
    assert answer.status_code == 404


async def test_a_repeated_fork_makes_one_job(served: Served, parent: Job) -> None:
    named = {"Idempotency-Key": "once"}
    first, again = [await forked(served, parent, {}, named) for _ in range(2)]
    assert first.json()["id"] == again.json()["id"]
    assert len(await served.jobs.ids()) == 2
    child = await served.jobs.get(first.json()["id"])
    await add_checkpoint(served, child, 1)
    other = await forked(served, child, {}, named)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")


async def test_the_same_body_for_another_job_is_no_repeat(served: Served, parent: Job) -> None:
    child = await made(served, parent, {})
    await add_checkpoint(served, child, 1)
    retried = (await forked(served, child, {}, {"x-stainless-retry-count": "1"})).json()
    assert retried["forked_from"]["fine_tuning_job_id"] == child.id


async def test_a_model_that_a_fork_starts_from_is_kept(served: Served, client: AsyncOpenAI, parent: Job) -> None:
    await served.jobs.move(parent.id, "cancelled")
    child = await made(served, parent, {})
    with pytest.raises(openai.BadRequestError, match=child.id):
        await client.models.delete(model_name(parent, 4))


async def test_the_rewards_code_is_the_jobs_own_and_a_fork_takes_it_over(
    served: Served, client: AsyncOpenAI, training_file: str, tmp_path: Path
) -> None:
    code = tmp_path / "user"
    code.mkdir()
    (code / "helper.py").write_text("def right(text, answer): return float(text == answer)")
    (code / "reward.py").write_text(
        "import helper\ndef score(completion, answer): return helper.right(completion, answer)"
    )
    grader = {"type": "function", "name": "r", "function": f"{code}/reward.py:score"}
    created = await client.fine_tuning.jobs.create(**body(training_file, grader=grader))
    parent = await served.jobs.get(created.id)
    folder = served.data_dir / "jobs" / parent.id / "reward_code" / parent.grader["sha256"]
    assert {file.name for file in folder.iterdir()} == {"helper.py", "reward.py"}
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        shown = (await http.get(f"/v1/fine_tuning/jobs/{parent.id}")).json()
    assert shown["method"]["reinforcement"]["grader"]["sha256"] == folder.name
    await add_checkpoint(served, parent, 2)
    (code / "helper.py").write_text("def right(text, answer): raise RuntimeError('edited')")
    job = await made(served, parent, {})
    assert job.grader == parent.grader
    copy = served.data_dir / "jobs" / job.id / "reward_code" / parent.grader["sha256"]
    assert (copy / "helper.py").read_bytes() == (folder / "helper.py").read_bytes()
    anew = await refused(served, parent, {"grader": grader})
    assert "RuntimeError: edited" in anew["message"]
    left = {entry.name for entry in (served.data_dir / "jobs").iterdir()}
    assert left == {parent.id, job.id}, "a job that is not taken leaves no code behind"
