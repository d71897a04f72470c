"""`headrace jobs …` and `headrace checkpoints …` against a real gateway: what they show, what they change."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from rich.console import Console
from typer.testing import Result

from headrace_core.errors import InvalidRequest, NotFound, WeightsDamaged
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Checkpoint, JobError, PausedBy, model_name
from headrace_core.types.staleness import Limits
from headrace_gateway.cli.live_view import follow
from headrace_gateway.models.model_folder import copy
from headrace_lab.paths import ADDER
from headrace_lab.services import command_line
from headrace_lab.services.jobs import stored_job

from .conftest import Served, body
from .test_observe import EVALUATION, WORKER, step

SHIPPED = ADDER / "model"


async def headrace(served: Served, *arguments: str) -> Result:
    return await asyncio.to_thread(command_line.headrace, *arguments, HEADRACE_URL=served.url, COLUMNS="160")


def message(result: Result) -> str:
    """What `main` prints of an error that the user can mend."""
    assert result.exit_code == 1, result.output
    return str(getattr(result.exception, "message", result.output))


@pytest.fixture
async def job(served: Served) -> str:
    """A running job that has trained two of ten steps."""
    await served.jobs.create(stored_job(grader={"type": "string_check", "name": "exact"}))
    await served.jobs.move("ftjob-1", "queued")
    await served.jobs.move("ftjob-1", "running")
    await Ledger(served.redis, "ftjob-1").open(Limits(batch_size=1, max_staleness=2, total_groups=10))
    await served.redis.hset(JobKeys("ftjob-1").ledger, "version", "2")
    for measured in (step(1), step(2, 0.6), EVALUATION):
        await served.jobs.record("ftjob-1", measured)
    await served.jobs.record_heartbeat("ftjob-1", WORKER)
    await served.jobs.emit_event("ftjob-1", "rollout-0 is ready")
    return "ftjob-1"


async def test_a_list_says_how_far_each_is(served: Served, job: str) -> None:
    shown = await headrace(served, "jobs", "list")
    assert shown.exit_code == 0, shown.output
    assert [part in shown.output for part in (job, "running", "2/10", "0.600")] == [True] * 4
    found = json.loads((await headrace(served, "jobs", "list", "--json")).output)
    assert [(j["id"], j["step"]) for j in found] == [(job, 2)]


async def test_a_page_shows_what_there_is(served: Served, job: str) -> None:
    await served.jobs.add_checkpoint(job, Checkpoint("ftckpt_1", 5.0, 2, "ft:m", "/c", {"train_mean_reward": 0.6}))
    page = (await headrace(served, "jobs", "show", job)).output
    for part in (
        "running", "2/10 steps", "string_check exact", "reward     0.600 ▁█ · validation 0.750",
        "ages       0: 50%, 2: 50% · bound 2, oldest ever trained 0 of 2", "admitted 0 = leased 0",
        "rollout-0", "busy 78%, waits most for window", "step 2      ftckpt_1  reward 0.600", "rollout-0 is ready",
    ):  # fmt: skip
        assert part in page, page


async def test_a_page_of_a_job_that_has_not_begun(served: Served) -> None:
    await served.jobs.create(stored_job("ftjob-new", error=JobError("invalid_data", "row 3 is wrong")))
    page = (await headrace(served, "jobs", "show", "ftjob-new")).output
    assert "0/10 steps" in page
    assert "error      invalid_data: row 3 is wrong" in page


async def test_a_page_shows_why_a_job_is_paused(served: Served, job: str) -> None:
    assert "paused     " not in (await headrace(served, "jobs", "show", job)).output
    await served.jobs.move(job, "paused", PausedBy("disk_full", "no space on [the] disk", 5.0))
    page = (await headrace(served, "jobs", "show", job)).output
    assert "paused     disk_full: no space on [the] disk, at " in page
    await served.jobs.move(job, "queued")
    await served.jobs.move(job, "paused")
    assert "paused     by its user" in (await headrace(served, "jobs", "show", job)).output


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 3)])
async def test_watch_ends_with_the_jobs_status(served: Served, job: str, status: Any, code: int) -> None:
    watching = asyncio.create_task(headrace(served, "jobs", "watch", job))
    await served.jobs.record(job, step(10))
    await served.jobs.move(job, status)
    watched = await asyncio.wait_for(watching, timeout=30)
    assert watched.exit_code == code, watched.output
    assert "rollout-0 is ready" in watched.output
    assert "step 10/10 · reward 0.500 · ages 0: 50%, 2: 50%" in watched.output


def test_a_terminal_sees_the_picture() -> None:
    job = {"status": "running", "total_steps": 10, "estimated_finish": time.time() + 90}
    job["method"] = {"reinforcement": {"hyperparameters": {"max_staleness": 2}}}
    ledger = {"states": {"leased": 3, "filtered": 0}, "admitted": 3, "largest_age": 4, "largest_age_bound": 4}
    console = Console(force_terminal=True, width=100, record=True)
    measured = {**{name: getattr(step(3), name) for name in ("step", "total_steps", "reward_mean")}}
    measured["ages"] = {"1": {"tokens": 5}}
    told = {"level": "warn", "message": "[careful]", "type": "message", "data": None}
    entries = [("state", {"job": job, "ledger": ledger}), ("step", measured), ("event", told)]
    assert follow(console, entries) is job
    drawn = console.export_text()
    for part in (
        "3/10 steps",
        "0:01:",
        "left",
        "1: 100% · bound 2, oldest ever trained 4 of 4",
        "admitted 3 = leased 3",
    ):
        assert part in drawn
    assert "[careful]" in drawn
    assert "filtered" not in drawn


async def test_logs_are_oldest_first_and_followed_to_the_end(served: Served, job: str) -> None:
    await served.jobs.emit_event(job, "second")
    shown = (await headrace(served, "jobs", "logs", job)).output
    assert shown.index("rollout-0 is ready") < shown.index("second")
    assert "second" not in (await headrace(served, "jobs", "logs", job, "--limit", "1")).output.partition("second")[2]
    following = asyncio.create_task(headrace(served, "jobs", "logs", job, "--follow", "--json"))
    await served.jobs.emit_event(job, "third")
    await served.jobs.move(job, "cancelled")
    lines = (await asyncio.wait_for(following, timeout=30)).output.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["rollout-0 is ready", "second", "third"]


async def test_settings_of_a_running_job(served: Served, client: AsyncOpenAI, training_file: str) -> None:
    job = (await client.fine_tuning.jobs.create(**body(training_file))).id
    await served.jobs.move(job, "running")
    changed = await headrace(served, "jobs", "set", job, "max_staleness=2", "learning_rate=1e-5")
    assert changed.exit_code == 0, (changed.output, changed.exception)
    assert "max_staleness 4 → 2" in changed.output
    found = json.loads((await headrace(served, "jobs", "set", job, "--json")).output)
    assert (found["settings"]["max_staleness"], found["settings"]["learning_rate"]) == (2, 1e-5)
    assert "NAME=VALUE" in message(await headrace(served, "jobs", "set", job, "max_staleness"))
    assert "batch_size" in message(await headrace(served, "jobs", "set", job, "batch_size=2"))


async def test_a_fork_is_a_new_job(served: Served, client: AsyncOpenAI, training_file: str) -> None:
    job = (await client.fine_tuning.jobs.create(**body(training_file))).id
    saved = served.data_dir / "jobs" / job / "checkpoints" / "step-00000002"
    copy_model(saved / "model")
    await served.jobs.add_checkpoint(
        job, Checkpoint("ftckpt_1", 5.0, 2, model_name(await served.jobs.get(job), 2), str(saved), {})
    )
    made = await headrace(served, "jobs", "fork", job, "max_staleness=1", "--suffix", "mine", "--no-follow")
    assert made.exit_code == 0, (made.output, made.exception)
    [forked] = [j for j in await served.jobs.all() if j.id != job]
    assert forked.id in made.output
    assert "from step 2" in made.output
    assert (forked.hyperparameters["max_staleness"], forked.suffix) == (1, "mine")


async def test_an_unknown_job_is_one_line(served: Served) -> None:
    for command in ("show", "cancel", "logs", "watch"):
        assert "no job 'ftjob-none'" in message(await headrace(served, "jobs", command, "ftjob-none"))


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def copy_model(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    copy(SHIPPED, folder)


async def test_checkpoints_are_listed_and_exported(served: Served, job: str, tmp_path: Path) -> None:
    for number in (2, 4):
        saved = tmp_path / "jobs" / f"step-{number}"
        copy_model(saved / "model")
        name = model_name(await served.jobs.get(job), number)
        await served.jobs.add_checkpoint(job, Checkpoint(f"ftckpt_{number}", 5.0, number, name, str(saved), {}))
    listed = await headrace(served, "checkpoints", "list", job)
    assert listed.output.index("ftckpt_4") < listed.output.index("ftckpt_2")
    found = json.loads((await headrace(served, "checkpoints", "list", job, "--json")).output)
    assert [c["step_number"] for c in found] == [4, 2]
    target = tmp_path / "mine"
    exported = await headrace(served, "checkpoints", "export", job, str(target), "--step", "2")
    assert exported.exit_code == 0, (exported.output, exported.exception)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {f.name: f.read_bytes() for f in SHIPPED.iterdir()}
    assert "exists already" in message(await headrace(served, "checkpoints", "export", job, str(target)))
    wrong = await headrace(served, "checkpoints", "export", job, str(tmp_path / "other"), "--step", "3")
    assert "it has 4, 2" in message(wrong)


@pytest.mark.parametrize("folder", ["x/../model", "a b/modèle 模型 'x'", "50% [off]?#top", "a:b:ckpt-step-2"])
async def test_a_model_of_any_folders_name_is_exported(served: Served, tmp_path: Path, folder: str) -> None:
    """A job file's `model = "../model"` leads to a path with dots."""
    await served.jobs.create(stored_job(model=f"{tmp_path}/{folder}", grader={"type": "string_check", "name": "exact"}))
    name = model_name(await served.jobs.get("ftjob-1"), 2)
    copy_model(tmp_path / "saved" / "model")
    await served.jobs.add_checkpoint("ftjob-1", Checkpoint("ftckpt_2", 5.0, 2, name, str(tmp_path / "saved"), {}))
    exported = await headrace(served, "checkpoints", "export", "ftjob-1", str(tmp_path / "mine"))
    assert exported.exit_code == 0, (exported.output, exported.exception)
    assert (tmp_path / "mine" / "config.json").is_file()


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    copy(SHIPPED, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsDamaged, match="its header speaks of"):
        copy(tmp_path / "damaged", tmp_path / "copy")
    with pytest.raises(NotFound, match="the gateway's machine"):
        copy(tmp_path / "none", tmp_path / "copy")
    with pytest.raises(InvalidRequest, match="no folder"):
        copy(SHIPPED, tmp_path / "none" / "copy")
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]
