"""What belongs to one key's holder does not exist for another's: on every route that the app has, by path, by body, in
lists and in streams."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Checkpoint, model_name
from headrace_lab.paths import ADDER
from headrace_lab.services.jobs import Seeded, stored_job

from .conftest import GRADER, body, rows
from .keyed import Keyed, keyed

__all__ = ["keyed"]

OF_ONE = re.compile(r"/v1/(fine_tuning/jobs/\{job_id\}|files/\{file_id\})")


def routes(served: Keyed, *, of_one: bool) -> list[tuple[str, str]]:
    """(method, path) of the routes of one job or file, or of all others below /v1."""
    found = [r for r in served.app.routes if isinstance(r, APIRoute) and r.path.startswith("/v1")]
    return [(m, r.path) for r in found for m in sorted(r.methods) if bool(OF_ONE.match(r.path)) == of_one]


def filled(path: str, job_id: str, file_id: str) -> str:
    return re.sub(r"\{[^}]*\}", "1", path.replace("{job_id}", job_id).replace("{file_id}", file_id))


@pytest.fixture
async def of_alice(keyed: Keyed) -> tuple[str, str, str]:
    """Alice's (job, file, trained model); the job has ended, so that its streams end."""
    async with keyed.openai(keyed.alice) as client:
        file = await client.files.create(file=("a.jsonl", rows(8)), purpose="fine-tune")
    jobs = JobStore(keyed.redis)
    job = stored_job(
        "ftjob-" + "a" * 24,
        owner="alice",
        training_file=file.id,
        grader=GRADER,
        hyperparameters=Hyperparameters(n_steps=3, n_epochs=None).model_dump(),
    )
    name = model_name(job, 1)
    await jobs.create(job)
    await jobs.add_checkpoint(job.id, Checkpoint("ftckpt_1", 2.0, 1, name, str(ADDER)))
    for measured in Seeded(1, steps=4, total=4, beats=0).measurements():
        await jobs.record(job.id, measured)
    await jobs.move(job.id, "cancelled")
    await jobs.mark_at_rest(job.id, "cancelled")
    return job.id, file.id, name


async def test_no_route_of_a_job_or_file_shows_anothers(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    job_id, file_id, _ = of_alice
    found = routes(keyed, of_one=True)
    assert len(found) > 15
    nothing = ("ftjob-" + "0" * 24, "file-" + "0" * 24)
    async with keyed.http(keyed.bob) as bob, keyed.http(keyed.admin) as admin:
        for method, path in found:
            for query in ("", "?stream=true"):
                theirs = await bob.request(method, filled(path, job_id, file_id) + query, json={})
                none = await bob.request(method, filled(path, *nothing) + query, json={})
                assert (theirs.status_code, none.status_code) == (404, 404), (method, path)
                masked = theirs.text.replace(job_id, nothing[0]).replace(file_id, nothing[1])
                assert masked == none.text, (method, path)
        for method, path in found:
            if method == "GET":  # the same routes are there for who may see them
                answer = await admin.get(filled(path, job_id, file_id))
                missing = answer.status_code == 404 and f"no job '{job_id}'" in answer.text
                assert answer.status_code < 500, (path, answer.text)
                assert not missing, path
        told = await admin.get(f"/v1/fine_tuning/jobs/{job_id}/events?stream=true")
        assert told.text.rstrip().endswith("[DONE]")
    assert (await JobStore(keyed.redis).get(job_id)).status == "cancelled"


async def test_no_list_shows_anothers(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    lists = [path for method, path in routes(keyed, of_one=False) if method == "GET" and "{" not in path]
    shows = dict.fromkeys((keyed.alice, keyed.bob, keyed.admin), 0)
    for key in shows:
        async with keyed.http(key) as http:
            for path in lists:
                text = (await http.get(path)).text
                shows[key] += any(thing in text for thing in of_alice)
    assert shows[keyed.bob] == 0
    assert shows[keyed.alice] >= 3  # jobs, files, models
    assert shows[keyed.admin] >= shows[keyed.alice]


async def test_the_result_of_a_job_is_its_owners(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    async with keyed.openai(keyed.alice) as alice, keyed.openai(keyed.bob) as bob:
        [result] = (await alice.fine_tuning.jobs.retrieve(of_alice[0])).result_files
        for _ in range(2):  # before it is made, and after
            for asked in (bob.files.retrieve(result), bob.files.content(result), bob.files.delete(result)):
                with pytest.raises(openai.NotFoundError, match="no file"):
                    await asked
            assert (await alice.files.content(result)).text.count("\n") >= 5
        assert [f.id async for f in bob.files.list()] == []


async def test_a_file_that_anothers_job_needs_is_not_deleted(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    jobs = JobStore(keyed.redis)
    await jobs.create(stored_job("ftjob-of-root", owner="root", training_file=of_alice[1]))
    async with keyed.openai(keyed.alice) as alice:
        with pytest.raises(openai.BadRequestError, match="a job of another") as refused:
            await alice.files.delete(of_alice[1])
        assert "ftjob-of-root" not in refused.value.message
        await jobs.move("ftjob-of-root", "cancelled")
        assert (await alice.files.delete(of_alice[1])).deleted


async def test_a_model_of_another_cannot_be_named(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    async with keyed.openai(keyed.alice) as alice, keyed.openai(keyed.bob) as bob:
        assert (await alice.models.retrieve(of_alice[2])).owned_by == of_alice[0]
        with pytest.raises(openai.NotFoundError):
            await bob.models.retrieve(of_alice[2])
        mine = await bob.files.create(file=("b.jsonl", rows(8)), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as refused:
            await bob.fine_tuning.jobs.create(**body(mine.id, model=of_alice[2]))
        assert refused.value.code == "model_not_found"


async def test_a_file_of_another_cannot_be_trained_on(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    async with keyed.openai(keyed.bob) as bob:
        for asked in (body(of_alice[1]), body("file-none")):
            with pytest.raises(openai.BadRequestError) as refused:
                await bob.fine_tuning.jobs.create(**asked)
            assert refused.value.code == "file_not_found"


async def test_no_path_leads_into_the_data_folder(keyed: Keyed, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "of-somebody" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    async with keyed.openai(keyed.bob) as bob:
        mine = await bob.files.create(file=("b.jsonl", rows(8)), purpose="fine-tune")
        for path in (folder, tmp_path.parent / "link" / "checkpoints" / "of-somebody" / "model"):
            with pytest.raises(openai.BadRequestError, match="is not a model folder"):
                await bob.fine_tuning.jobs.create(**body(mine.id, model=str(path)))


async def test_a_new_key_of_the_same_name_has_what_the_old_one_had(
    keyed: Keyed, of_alice: tuple[str, str, str]
) -> None:
    _, again = await keyed.keys.create("alice", "user")
    async with keyed.openai(again) as client:
        assert [job.id async for job in client.fine_tuning.jobs.list()] == [of_alice[0]]
        assert (await client.files.retrieve(of_alice[1])).filename == "a.jsonl"


async def test_an_idempotency_key_is_its_callers(keyed: Keyed) -> None:
    made: list[Any] = []
    for key in (keyed.alice, keyed.bob, keyed.alice):
        async with keyed.openai(key) as client:
            file = [f.id async for f in client.files.list()] or [
                (await client.files.create(file=("a.jsonl", rows(8)), purpose="fine-tune")).id
            ]
            named = {"Idempotency-Key": "k"}
            made.append((await client.fine_tuning.jobs.create(**body(file[0]), extra_headers=named)).id)
    assert made[0] == made[2] != made[1]


async def test_no_spelling_of_a_path_gets_around_it(keyed: Keyed, of_alice: tuple[str, str, str]) -> None:
    job_id, file_id, _ = of_alice
    async with keyed.http(keyed.bob, follow_redirects=True) as bob:
        for suffix in ("%0A", "%00", "%2F..", "/", "%20", ";x", "%7B%7D"):
            for path in (
                f"/v1/fine_tuning/jobs/{job_id}{suffix}",
                f"/v1/fine_tuning/jobs/{job_id}{suffix}/events",
                f"/v1/fine_tuning/jobs/{job_id}/events{suffix}",
                f"/v1/fine_tuning/jobs/x/../{job_id}{suffix}",
                f"/v1//fine_tuning/jobs/{job_id}{suffix}",
                f"/v1/files/{file_id}{suffix}",
                f"/v1/files/{file_id}/content{suffix}",
            ):
                answer = await bob.send(httpx.Request("GET", httpx.URL(f"{keyed.url}{path}"), headers=bob.headers))
                assert answer.status_code == 404, path
