"""Trained models by name, and DELETE /v1/models/{name}, through OpenAI's client."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Checkpoint, model_name
from headrace_gateway.models.catalog import Models
from headrace_lab.paths import ADDER
from headrace_lab.services.jobs import stored_job

from .conftest import MODEL, Served


async def trained(served: Served, job_id: str, steps: int = 2, status: str = "succeeded") -> list[str]:
    """A job with checkpoints; the models' names, newest first, the job's own before them if it has one."""
    await served.jobs.create(stored_job(job_id, status="running", suffix="carry"))
    job = await served.jobs.get(job_id)
    for step in range(1, steps + 1):
        folder = served.data_dir / "jobs" / job_id / "checkpoints" / f"step-{step:08d}"
        shutil.copytree(ADDER / "model", folder / "model")
        saved = Checkpoint(f"ftckpt_{job_id}{step}", float(step), step, model_name(job, step), str(folder))
        await served.jobs.add_checkpoint(job_id, saved)
    names = [model_name(job, step) for step in range(steps, 0, -1)]
    if status == "succeeded":
        names.insert(0, model_name(job))
    if status != "running":
        outcome = model_name(job) if status == "succeeded" else None
        await served.jobs.move(job_id, status, outcome)  # type: ignore[arg-type]
    return names


async def offered(client: AsyncOpenAI) -> list[str]:
    return [model.id async for model in client.models.list() if model.id.startswith("ft:")]


async def test_a_checkpoint_is_deleted_and_offered_no_more(client: AsyncOpenAI, served: Served) -> None:
    final, second, first = await trained(served, "ftjob-a")
    others = await trained(served, "ftjob-b")
    deleted = await client.models.delete(first)
    assert (deleted.id, deleted.object, deleted.deleted) == (first, "model", True)
    assert sorted(await offered(client)) == sorted([final, second, *others])
    assert [c.step_number for c in (await client.fine_tuning.jobs.checkpoints.list("ftjob-a")).data] == [2]
    folders = served.data_dir / "jobs" / "ftjob-a" / "checkpoints"
    assert [f.name for f in folders.iterdir()] == ["step-00000002"]
    with pytest.raises(openai.NotFoundError) as gone:
        await client.models.retrieve(first)
    assert final in gone.value.message, "the job's other models are named"
    with pytest.raises(openai.NotFoundError):
        await client.models.delete(first)


async def test_a_jobs_trained_model_is_its_newest_checkpoint_by_another_name(
    client: AsyncOpenAI, served: Served
) -> None:
    final, second, first = await trained(served, "ftjob-a")
    (served.data_dir / "jobs" / "ftjob-a" / "model").mkdir()
    assert (await client.models.delete(final)).deleted
    assert await offered(client) == [first]
    assert (await client.fine_tuning.jobs.retrieve("ftjob-a")).fine_tuned_model is None
    assert sorted(f.name for f in (served.data_dir / "jobs" / "ftjob-a").iterdir()) == ["checkpoints"]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve(second)


async def test_what_an_unfinished_job_needs_is_kept(client: AsyncOpenAI, served: Served) -> None:
    (own,) = await trained(served, "ftjob-running", steps=1, status="running")
    with pytest.raises(openai.BadRequestError, match="its job is running"):
        await client.models.delete(own)
    _, origin = await trained(served, "ftjob-origin", steps=1)
    path = (await client.models.retrieve(origin)).path  # type: ignore[attr-defined]
    await served.jobs.create(stored_job("ftjob-next", status="queued", model=origin, model_path=path))
    with pytest.raises(openai.BadRequestError, match="ftjob-next is queued") as needed:
        await client.models.delete(origin)
    assert needed.value.code == "invalid_state"
    assert await asyncio.to_thread(Path(path).is_dir)
    await served.jobs.move("ftjob-next", "cancelled")
    assert (await client.models.delete(origin)).deleted
    assert not await asyncio.to_thread(Path(path).exists)


async def test_base_models_are_not_deleted(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only trained models") as refused:
        await client.models.delete(MODEL)
    assert refused.value.code == "base_model"
    assert (ADDER / "model" / "config.json").is_file()
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        await client.models.delete(MODEL + "s")


async def test_nothing_outside_the_jobs_folder_is_deleted(
    client: AsyncOpenAI, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "step"
    shutil.copytree(ADDER / "model", elsewhere / "model")
    _, name = await trained(served, "ftjob-a", steps=1)
    await served.jobs.add_checkpoint("ftjob-a", Checkpoint("ftckpt_x", 1.0, 1, name, str(elsewhere)))
    with pytest.raises(openai.BadRequestError, match="is not touched"):
        await client.models.delete(name)
    assert (elsewhere / "model" / "config.json").is_file()


async def test_a_name_is_found_without_reading_other_jobs(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    final, first = await trained(served, "ftjob-a", steps=1)

    async def read(self: JobStore) -> None:
        raise AssertionError("all jobs were read")

    monkeypatch.setattr(JobStore, "all", read)
    models = Models(Settings(data_dir=served.data_dir), served.jobs)
    assert (await models.get(final)).path == (await models.get(first)).path
    assert (await models.get(MODEL)).owner == "headrace"


async def test_a_model_trained_from_a_trained_one_is_found(client: AsyncOpenAI, served: Served) -> None:
    _, origin = await trained(served, "ftjob-a", steps=1)
    job = stored_job("ftjob-b", status="succeeded", model=origin)
    await served.jobs.create(job)
    folder = served.data_dir / "jobs" / "ftjob-b" / "checkpoints" / "step-00000001"
    shutil.copytree(ADDER / "model", folder / "model")
    name = model_name(job, 1)
    await served.jobs.add_checkpoint("ftjob-b", Checkpoint("ftckpt_b1", 1.0, 1, name, str(folder)))
    assert (await client.models.retrieve(name)).owned_by == "ftjob-b"
