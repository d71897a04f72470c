"""OpenAI's own client, unmodified, is the first client of the gateway: a job from its file to its end."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.fine_tuning import FineTuningJobEvent
from redis.asyncio import Redis

from headrace_core.jobs.job_store import JobStore
from headrace_core.types.events import StepSummary
from headrace_core.types.job import CHECKPOINT_MODEL, Checkpoint, model_name
from headrace_gateway.openapi.document import operations
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ADDER

from .conftest import GRADER, MODEL, Served, body, rows
from .test_chat_routes import LocalChats, chat_gateway
from .test_observe import EVALUATION, step


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
    await served.jobs.emit_event(job.id, "Step 1/3", type="metrics", data=StepSummary.of(step(1), 4))
    saved = Checkpoint("ftckpt_1", 2.0, 1, model_name(await served.jobs.get(job.id), 1), "/none", {"reward": 0.5})
    await served.jobs.add_checkpoint(job.id, saved)

    events = await client.fine_tuning.jobs.list_events(job.id)
    assert events.data[0].message == "Step 1/3"
    assert events.data[0].type == "metrics"
    assert events.data[-1].message.endswith(job.id)
    checkpoints = await client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [c.step_number for c in checkpoints.data] == [1]
    assert checkpoints.data[0].fine_tuned_model_checkpoint.endswith("ckpt-step-1")

    for _ in range(2):  # asked for twice is asked for once: the client repeats what it did not hear the answer to
        assert (await client.fine_tuning.jobs.pause(job.id)).status == "paused"
    for _ in range(2):
        assert (await client.fine_tuning.jobs.resume(job.id)).status == "queued"
    assert set(served.controllers.ensured) == {job.id}

    cancelled = [await client.fine_tuning.jobs.cancel(job.id) for _ in range(2)]
    assert [c.status for c in cancelled] == ["cancelled"] * 2
    assert cancelled[0].finished_at is not None
    assert cancelled[0].finished_at == cancelled[1].finished_at
    assert set(served.controllers.cancelled) == {job.id}
    told = [event.message for _, event in await served.jobs.events(job.id)]
    assert told[-3:] == ["pausing", "Resumed", "cancelled"]
    for change in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError) as wrong_state:  # 409 would be retried by the client
            await change(job.id)
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


async def ended_job(jobs: JobStore, client: AsyncOpenAI, training_file: str) -> str:
    """A job that was cancelled after two steps and an evaluation, and of which nothing runs any more."""
    job = await client.fine_tuning.jobs.create(**body(training_file))
    await jobs.move(job.id, "running")
    for measured in (step(1, 0.25), EVALUATION, step(2, 0.5)):
        await jobs.record(job.id, measured)
    await jobs.move(job.id, "cancelled")
    assert await jobs.mark_at_rest(job.id, "cancelled")
    return job.id


async def test_the_results_of_a_cancelled_job_have_its_last_step(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    """The learner records a step that it had settled before it hears of the cancellation."""
    job_id = (await client.fine_tuning.jobs.create(**body(training_file))).id
    await served.jobs.move(job_id, "running")
    await served.jobs.record(job_id, step(1, 0.25))
    await client.fine_tuning.jobs.cancel(job_id)
    assert (await client.fine_tuning.jobs.retrieve(job_id)).result_files == []
    assert [f.id async for f in client.files.list(purpose="fine-tune-results")] == []
    await served.jobs.record(job_id, step(2, 0.5))
    assert await served.jobs.mark_at_rest(job_id, "cancelled")
    (file_id,) = (await client.fine_tuning.jobs.retrieve(job_id)).result_files
    table = list(csv.DictReader(io.StringIO((await client.files.content(file_id)).content.decode())))
    assert [row["step"] for row in table] == ["1", "2"]


async def test_the_results_of_a_job_are_a_file(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    running = await client.fine_tuning.jobs.create(**body(training_file))
    assert running.result_files == []
    job_id = await ended_job(served.jobs, client, training_file)
    (file_id,) = (await client.fine_tuning.jobs.retrieve(job_id)).result_files
    file = await client.files.retrieve(file_id)
    content = (await client.files.content(file_id)).content
    assert (file.purpose, file.filename, file.bytes) == ("fine-tune-results", f"{job_id}-steps.csv", len(content))
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert [row["step"] for row in table] == ["1", "2"]
    assert [float(row["train_mean_reward"]) for row in table] == [0.25, 0.5]
    assert [row["full_valid_mean_reward"] for row in table] == ["0.75", ""]
    assert [row["largest_age"] for row in table] == ["2", "2"]
    with pytest.raises(openai.BadRequestError, match="belongs to its job"):
        await client.files.delete(file_id)


async def test_results_are_listed_before_anyone_has_asked_for_them(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    job_id = await ended_job(served.jobs, client, training_file)
    listed = [f.id async for f in client.files.list(purpose="fine-tune-results")]
    assert listed == (await client.fine_tuning.jobs.retrieve(job_id)).result_files
    assert [f.id async for f in client.files.list(order="asc")] == [training_file, *listed]
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve("file-results-none")


async def test_files_are_paged_in_both_orders(client: AsyncOpenAI) -> None:
    made = [(await client.files.create(file=(f"{n}", rows(1)), purpose="fine-tune")).id for n in range(5)]
    other = (await client.files.create(file=("other", rows(1)), purpose="evals")).id
    for order, expected in (("asc", made), ("desc", made[::-1])):
        listed = client.files.list(limit=2, order=order, purpose="fine-tune")  # type: ignore[arg-type]
        assert [file.id async for file in listed] == expected
    assert (await client.files.list(limit=1, order="desc")).data[0].id == other
    after = await client.files.list(after=made[1], order="asc", limit=2)
    assert ([file.id for file in after.data], after.has_more) == (made[2:4], True)


async def test_events_and_checkpoints_are_paged_newest_first(
    client: AsyncOpenAI, served: Served, training_file: str
) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file))
    for number in range(30):
        await served.jobs.emit_event(job.id, str(number))
        checkpoint = Checkpoint(f"ftckpt_{number}", 2.0, number, f"m{number}", "/none")
        await served.jobs.add_checkpoint(job.id, checkpoint)
    numbers = [str(number) for number in reversed(range(30))]
    page = await client.fine_tuning.jobs.list_events(job.id)
    assert ([event.message for event in page.data], page.has_more) == (numbers[:20], True)
    told = [event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=7)]
    assert told[:30] == numbers
    saved = await client.fine_tuning.jobs.checkpoints.list(job.id)
    assert ([str(c.step_number) for c in saved.data], saved.has_more) == (numbers[:10], True)
    all_saved = client.fine_tuning.jobs.checkpoints.list(job.id, limit=7)
    assert [str(c.step_number) async for c in all_saved] == numbers


async def test_integrations_stay_with_the_job(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    wandb: Any = {"project": "carry", "name": "first", "tags": ["a", "b"]}
    job = await client.fine_tuning.jobs.create(**body(training_file, integrations=[{"type": "wandb", "wandb": wandb}]))
    assert job.integrations is not None
    assert job.integrations[0].wandb.model_dump(exclude_none=True) == wandb
    assert (await served.jobs.get(job.id)).integrations == [{"type": "wandb", "wandb": {"entity": None, **wandb}}]
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.fine_tuning.jobs.create(**body(training_file, integrations=[{"type": "comet"}]))
    assert unknown.value.param == "integrations.0.type"


async def test_graders_through_the_client(client: AsyncOpenAI) -> None:
    """A type that the client does not know comes back under a class that is not its own; `type` is right."""
    graders = client.fine_tuning.alpha.graders
    valid = await graders.validate(grader=GRADER)  # type: ignore[arg-type]
    assert valid.grader is not None
    assert valid.grader.type == "string_check"
    ours: Any = {"type": "reasoning_pattern", "name": "form"}
    assert (await graders.validate(grader=ours)).grader.type == "reasoning_pattern"  # type: ignore[union-attr]
    run = await graders.run(grader=GRADER, model_sample="93", item={"answer": "93"})  # type: ignore[arg-type]
    assert (run.reward, run.metadata.name, run.metadata.errors.other_error) == (1.0, "answer", False)
    with pytest.raises(openai.BadRequestError) as wrong:
        await graders.validate(grader={"type": "nonsense", "name": "n"})  # type: ignore[arg-type]
    assert wrong.value.param == "grader.type"


# ── the transcript ───────────────────────────────────────────────────────────────────────────────────────────────────

SURFACE = ("files", "jobs", "graders", "models", "chat")
"""Tags of what OpenAI's client has methods for."""
OURS = {"jobs_fork"}


@pytest.fixture
async def url(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[str]:
    """Of a gateway whose models chat."""
    async with chat_gateway(LocalChats(), redis_server.url, tmp_path) as url:
        yield url


@pytest.fixture
async def recorded(url: str) -> AsyncIterator[tuple[AsyncOpenAI, list[httpx.Response]]]:
    """The client, and every answer that it was given."""
    answers: list[httpx.Response] = []

    async def record(response: httpx.Response) -> None:
        answers.append(response)

    http = httpx.AsyncClient(event_hooks={"response": [record]})
    client = AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="unused",
        max_retries=0,
        http_client=http,  # type: ignore[arg-type]  # its annotation names httpx2's client alone; it takes httpx's too
    )
    async with client:
        yield client, answers


async def test_a_transcript_of_every_method(
    recorded: tuple[AsyncOpenAI, list[httpx.Response]],
    url: str,
    redis: Redis,
    tmp_path: Path,
) -> None:
    """One session, from the file to a chat with what was trained: each route of OpenAI's surface answers its method."""
    client, answers = recorded
    jobs, store = client.fine_tuning.jobs, JobStore(redis)
    file = await client.files.create(file=("train.jsonl", rows(8)), purpose="fine-tune")
    assert (await client.files.retrieve(file.id)).filename == "train.jsonl"
    assert [f.id async for f in client.files.list()] == [file.id]
    assert (await client.files.content(file.id)).content == rows(8)

    assert (await client.fine_tuning.alpha.graders.validate(grader=GRADER)).grader is not None  # type: ignore[arg-type]
    tried = await client.fine_tuning.alpha.graders.run(grader=GRADER, model_sample="9", item={"answer": "93"})  # type: ignore[arg-type]
    assert tried.reward == 0.0

    job = await jobs.create(**body(file.id, suffix="carry"))
    assert (await jobs.retrieve(job.id)).status == "queued"
    assert [j.id async for j in jobs.list()] == [job.id]
    assert (await jobs.pause(job.id)).status == "paused"
    assert (await jobs.resume(job.id)).status == "queued"
    await store.move(job.id, "running")
    trained = model_name(await store.get(job.id), 1)
    shutil.copytree(ADDER / "model", tmp_path / "jobs" / job.id / "checkpoints" / "1" / CHECKPOINT_MODEL)
    folder = str(tmp_path / "jobs" / job.id / "checkpoints" / "1")
    await store.add_checkpoint(job.id, Checkpoint("ftckpt_1", 2.0, 1, trained, folder))
    assert [c.fine_tuned_model_checkpoint async for c in jobs.checkpoints.list(job.id)] == [trained]
    assert (await jobs.cancel(job.id)).status == "cancelled"
    told = [event.message async for event in jobs.list_events(job.id)]
    stream = await client.get(
        f"/fine_tuning/jobs/{job.id}/events?stream=true",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=AsyncStream[FineTuningJobEvent],
    )
    assert [event.message async for event in stream] == told[::-1]

    assert trained in [m.id async for m in client.models.list()]
    assert (await client.models.retrieve(trained)).owned_by == job.id
    question: Any = [{"role": "user", "content": "What is 37 + 56?"}]
    said = await client.chat.completions.create(model=trained, messages=question, temperature=0)
    pieces = await client.chat.completions.create(model=trained, messages=question, temperature=0, stream=True)
    spoken = [piece.choices[0].delta.content or "" async for piece in pieces]
    assert "".join(spoken) == said.choices[0].message.content
    assert (await client.models.delete(trained)).deleted
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve(trained)

    async with httpx.AsyncClient() as http:
        document = (await http.get(f"{url}/openapi.json")).json()
    surface = {
        (method.upper(), re.sub(r"\{\w+\}", "[^?]+", path)): operation["operationId"]
        for path, method, operation in operations(document)
        if operation["tags"][0] in SURFACE and operation["operationId"] not in OURS
    }
    asked = {
        name
        for (method, path), name in surface.items()
        for answer in answers
        if answer.request.method == method and re.fullmatch(path, answer.request.url.path)
    }
    assert set(surface.values()) - asked == set()
    assert all(answer.headers["x-request-id"].startswith("req_") for answer in answers)
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
