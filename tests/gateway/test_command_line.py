"""`headrace train` and `headrace jobs …` against a real gateway, and what a job file may hold."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from headrace_core.errors import InvalidData, InvalidRequest, NotFound, Unavailable
from headrace_core.types.job import JobError, PausedBy
from headrace_gateway.cli import job_file
from headrace_gateway.client import Client
from headrace_gateway.events import job_streams
from headrace_lab.paths import ADDER
from headrace_lab.services import command_line
from headrace_lab.services.jobs import stored_job
from headrace_lab.waiting import wait_until_async

from .conftest import Served, rows

JOB = """
model = "headrace/tiny-adder"
training_file = "data/train.jsonl"
suffix = "carry"
[grader]
type = "function"
name = "r"
function = "reward.py:r"
[hyperparameters]
n_steps = 2
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file, with its files beside it."""
    folder = tmp_path / "job"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_bytes(rows(4))
    (folder / "reward.py").write_text("def r(sample, item):\n    return 1.0\n")
    (folder / "job.toml").write_text(JOB)
    return folder / "job.toml"


async def headrace(*arguments: str) -> Result:
    return await asyncio.to_thread(command_line.headrace, *arguments)


def test_paths_are_relative_to_the_job_file(job: Path) -> None:
    told = job_file.read(job)
    assert told.uploads == {"training_file": job.parent / "data" / "train.jsonl"}
    assert told.body["method"]["reinforcement"]["grader"]["function"] == f"{job.parent}/reward.py:r"
    assert told.body["suffix"] == "carry"


def test_a_model_folder_is_named_by_its_path_from_the_job_file_and_others_by_their_name(job: Path) -> None:
    assert job_file.read(job).body["model"] == "headrace/tiny-adder"
    for written in ("./models/mine", "models/mine", "../shared"):
        folder = job.parent / written
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        job.write_text(JOB.replace("headrace/tiny-adder", written))
        told = Path(job_file.read(job).body["model"])
        assert told.is_absolute()
        assert told.samefile(folder)
        assert ".." not in told.parts  # an address with it would be shortened, and name another model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("headrace/tiny-adder", "./none"), "model: .*/job/none is not a model folder"),
        (('model = "headrace/tiny-adder"', ""), "needs 'model'"),
        (("suffix", "sufix"), "unknown name 'sufix'"),
        (("data/train.jsonl", "data/none.jsonl"), "there is no file"),
        (("[grader]", "[grader"), "not TOML"),
    ],
)
def test_a_wrong_job_file_says_how(job: Path, change: tuple[str, str], message: str) -> None:
    job.write_text(JOB.replace(*change))
    with pytest.raises(InvalidData, match=message):
        job_file.read(job)


def test_integrations_are_handed_on(job: Path) -> None:
    job.write_text(JOB + '[[integrations]]\ntype = "wandb"\nwandb = {project = "sums"}\n')
    assert job_file.read(job).body["integrations"] == [{"type": "wandb", "wandb": {"project": "sums"}}]


def test_the_shipped_job_file() -> None:
    told = job_file.read(ADDER / "job.toml")
    assert set(told.uploads) == {"training_file", "validation_file"}


async def test_train_submits_and_jobs_show(served: Served, job: Path) -> None:
    trained = await headrace("train", str(job), "--url", served.url, "--no-follow")
    assert trained.exit_code == 0, trained.output
    [job_id] = await served.jobs.ids()
    assert job_id in trained.output
    assert (await served.jobs.get(job_id)).rows == 4
    shown = json.loads((await headrace("jobs", "show", job_id, "--json", "--url", served.url)).output)
    assert (shown["status"], shown["ledger"]["admitted"]) == ("queued", 0)
    assert "paused" in (await headrace("jobs", "pause", job_id, "--url", served.url)).output
    assert "queued" in (await headrace("jobs", "resume", job_id, "--url", served.url)).output
    assert "cancelled" in (await headrace("jobs", "cancel", job_id, "--url", served.url)).output


@pytest.mark.parametrize(("status", "exit_code"), [("succeeded", 0), ("failed", 1)])
async def test_train_follows_to_the_end(served: Served, job: Path, status: Any, exit_code: int) -> None:
    following = asyncio.create_task(headrace("train", str(job), "--url", served.url))
    await wait_until_async(lambda: bool(served.controllers.ensured), "the job has a controller")
    [job_id] = served.controllers.ensured
    await served.jobs.move(job_id, "running")
    await served.jobs.emit_event(job_id, "rollout-0 is ready")
    await served.jobs.move(job_id, status, JobError("worker_failed", "the learner died") if exit_code else "ft:mine")
    done = await asyncio.wait_for(following, timeout=30)
    assert done.exit_code == exit_code, done.output
    assert "rollout-0 is ready" in done.output
    assert ("the learner died" if exit_code else "ft:mine") in done.output


async def test_who_follows_a_job_that_pauses_is_let_go_with_a_code_of_its_own(served: Served, job: Path) -> None:
    following = asyncio.create_task(headrace("train", str(job), "--url", served.url))
    await wait_until_async(lambda: bool(served.controllers.ensured), "the job has a controller")
    [job_id] = served.controllers.ensured
    await served.jobs.move(job_id, "running")
    await served.jobs.move(job_id, "paused", PausedBy("worker_failed", "the learner died of it", 1.0))
    done = await asyncio.wait_for(following, timeout=60)
    assert done.exit_code == 4, done.output
    assert "the learner died of it" in done.output
    assert f"headrace jobs resume {job_id}" in done.output
    assert (await headrace("jobs", "watch", job_id, "--url", served.url)).exit_code == 4


async def test_the_gateways_own_words_reach_the_terminal(served: Served) -> None:
    await served.jobs.create(stored_job("ftjob-done", status="succeeded"))

    def ask() -> None:
        with Client(served.url) as client:
            with pytest.raises(InvalidRequest, match="ftjob-done is succeeded"):
                client.change("ftjob-done", "cancel")
            with pytest.raises(NotFound, match="no job 'ftjob-none'"):
                list(client.stream("ftjob-none"))

    await asyncio.to_thread(ask)


async def test_a_stream_outlasts_its_comments_and_is_parted_at_line_feeds_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON may hold line separators of Unicode as they are; they once parted an event in two."""
    monkeypatch.setattr(job_streams, "PING_SECONDS", 0.02)
    await served.jobs.create(stored_job("ftjob-talks", status="running"))
    messages = ["one\u2028two\x85three", "four"]
    await served.jobs.emit_event("ftjob-talks", messages[0])

    def follow() -> list[str]:
        with Client(served.url) as client:
            return [data["message"] for kind, data in client.stream("ftjob-talks") if kind == "event"]

    following = asyncio.create_task(asyncio.to_thread(follow))
    await asyncio.sleep(0.5)  # comments go by
    await served.jobs.emit_event("ftjob-talks", messages[1])
    await served.jobs.move("ftjob-talks", "succeeded")
    told = await asyncio.wait_for(following, timeout=30)
    assert [message for message in told if message in messages] == messages


def test_no_gateway_there() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unavailable, match="start one with `headrace serve`"):
        client.overview(1)
