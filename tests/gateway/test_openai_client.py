"""OpenAI's own client, unmodified, is the first client of the gateway: a job from its file to its end."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.fine_tuning import FineTuningJobEvent

from headrace_core.jobs import Checkpoint, model_name

from .conftest import MODEL, Served, body, rows


async def test_the_life_of_a_job(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file, suffix="carry", seed=7, metadata={"who": "me"}))
    assert (job.object, job.status, job.model, job.organization_id) == ("fine_tuning.job", "queued", MODEL, "headrace")
    assert (job.seed, job.metadata, job.training_file) == (7, {"who": "me"}, training_file)
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.grader.type == "string_check"
    settings = job.method.reinforcement.hyperparameters
    assert settings is not None
    assert (settings.batch_size, settings.max_staleness, settings.seed) == (4, 4, 7)  # type: ignore[attr-defined]
    assert served.controllers.ensured == [job.id]

    await served.jobs.move(job.id, "running")
    await served.jobs.tell(job.id, "Step 1/3", type="metrics", data={"step": 1})
    saved = Checkpoint("ftckpt_1", 2.0, 1, model_name(await served.jobs.get(job.id), 1), "/none", {"reward": 0.5})
    await served.jobs.add_checkpoint(job.id, saved)

    events = await client.fine_tuning.jobs.list_events(job.id)
    assert events.data[0].message == "Step 1/3"
    assert events.data[0].type == "metrics"
    assert events.data[-1].message.endswith(job.id)
    checkpoints = await client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [c.step_number for c in checkpoints.data] == [1]
    assert checkpoints.data[0].fine_tuned_model_checkpoint.endswith("ckpt-step-1")

    with pytest.raises(openai.BadRequestError):  # it runs
        await client.fine_tuning.jobs.resume(job.id)
    assert (await client.fine_tuning.jobs.pause(job.id)).status == "paused"
    assert (await client.fine_tuning.jobs.resume(job.id)).status == "queued"
    assert served.controllers.ensured == [job.id, job.id]

    cancelled = await client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert served.controllers.cancelled == [job.id]
    with pytest.raises(openai.BadRequestError) as wrong_state:  # 409 would be retried by the client
        await client.fine_tuning.jobs.cancel(job.id)
    assert wrong_state.value.code == "invalid_state"


async def test_events_as_a_stream_of_the_client(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file))
    await served.jobs.move(job.id, "cancelled")
    stream = await client.get(
        f"/fine_tuning/jobs/{job.id}/events?stream=true",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=AsyncStream[FineTuningJobEvent],
    )
    told = [event.message async for event in stream]
    assert told == [event.message for _, event in await served.jobs.events(job.id)]
    assert told[-1] == "Queued"


async def test_jobs_are_paged_newest_first_and_filtered_by_metadata(client: AsyncOpenAI, training_file: str) -> None:
    made = []
    for team in ("a", "b", "a"):
        made.append((await client.fine_tuning.jobs.create(**body(training_file, metadata={"team": team}))).id)
    assert [job.id async for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    first = await client.fine_tuning.jobs.list(limit=2)
    assert first.has_more
    of_a = await client.fine_tuning.jobs.list(metadata={"team": "a"})
    assert [job.id for job in of_a.data] == [made[2], made[0]]


async def test_files(client: AsyncOpenAI) -> None:
    content = rows(3)
    file = await client.files.create(file=("a.jsonl", content), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("a.jsonl", len(content), "fine-tune", "processed")
    assert (await client.files.content(file.id)).content == content
    assert [f.id async for f in client.files.list(purpose="fine-tune")] == [file.id]
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)


async def test_a_file_in_use_is_not_deleted(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file))
    with pytest.raises(openai.BadRequestError, match=job.id):
        await client.files.delete(training_file)
    await served.jobs.move(job.id, "cancelled")
    assert (await client.files.delete(training_file)).deleted


async def test_models_base_and_trained(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    assert (await client.models.retrieve(MODEL)).owned_by == "headrace"
    job = await client.fine_tuning.jobs.create(**body(training_file))
    stored = await served.jobs.get(job.id)
    name = model_name(stored, 2)
    folder = str(Path(stored.model_path).parent)  # the model lies in a folder `model`, as in a checkpoint
    await served.jobs.add_checkpoint(job.id, Checkpoint("ftckpt_1", 2.0, 2, name, folder))
    assert [m.id async for m in client.models.list()] == [MODEL, "headrace/tiny-longtail", name]
    assert (await client.models.retrieve(name)).owned_by == job.id
    again = await client.fine_tuning.jobs.create(**body(training_file, model=name))
    assert again.model == name
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody/nothing")


async def test_a_retried_post_makes_one_job(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    asked = body(training_file)
    first = await client.fine_tuning.jobs.create(**asked)
    retried = await client.fine_tuning.jobs.create(**asked, extra_headers={"x-stainless-retry-count": "1"})
    meant_twice = await client.fine_tuning.jobs.create(**asked)
    assert retried.id == first.id
    assert meant_twice.id != first.id
    assert sorted(await served.jobs.ids()) == sorted([first.id, meant_twice.id])


async def test_an_idempotency_key_names_a_request(client: AsyncOpenAI, training_file: str) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = await client.fine_tuning.jobs.create(**body(training_file), extra_headers=key)
    assert (await client.fine_tuning.jobs.create(**body(training_file), extra_headers=key)).id == first.id
    with pytest.raises(openai.BadRequestError) as other_body:
        await client.fine_tuning.jobs.create(**body(training_file, suffix="other"), extra_headers=key)
    assert other_body.value.code == "idempotency_key_reused"
