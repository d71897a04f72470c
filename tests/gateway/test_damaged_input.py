"""What the gateway reads back, damaged: every route answers, names what is damaged, says what to do, shows the rest."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from headrace_core.errors import Damaged, InvalidData, InvalidRequest, NotAuthenticated, Unavailable, WeightsDamaged
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Checkpoint
from headrace_gateway.auth.api_keys import decode_key
from headrace_gateway.cli import job_file
from headrace_gateway.exporters.export_loop import Cursor, read_cursor
from headrace_gateway.models import model_folder
from headrace_gateway.models.catalog import Model
from headrace_gateway.models.prompt_tokens import PromptCounter
from headrace_gateway.service.embedded_redis import running
from headrace_lab.faults.byte_damage import damages
from headrace_lab.paths import ADDER
from headrace_lab.services.jobs import stored_job

from .conftest import MODEL, Served, body, rows
from .keyed import Keyed, keyed
from .test_envelope import error_of, http

__all__ = ["http", "keyed"]  # fixtures

JOBS = "/v1/fine_tuning/jobs"
LISTS = (JOBS, "/v1/headrace/overview", "/v1/files", "/v1/models", "/metrics", f"{JOBS}/ftjob-whole/checkpoints")


def changed(source: Path, target: Path, raw: bytes) -> Path:
    """The tiny model's folder, with one file of other bytes."""
    folder = target.parent
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != target.name and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    target.unlink(missing_ok=True)
    target.write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    ("key", "field"),
    [
        (JobKeys("ftjob-broken").job, "document"),
        (JobKeys("ftjob-broken").job, "pace"),
        (JobKeys("ftjob-whole").checkpoints, "9"),
        (JobKeys("ftjob-whole").workers, "rollout-9"),
        (JobKeys("ftjob-whole").rewards, "rollout-9 1.0"),
        (JobKeys("ftjob-whole").summary, "step"),
        (JobKeys("ftjob-whole").summary, "spark"),
        (keys.FILES, "file-broken"),
    ],
)
async def test_a_damaged_record_breaks_no_list(
    http: httpx.AsyncClient, served: Served, redis: Redis, key: str, field: str
) -> None:
    for job_id in ("ftjob-whole", "ftjob-broken"):
        await served.jobs.create(stored_job(job_id, status="running"))
    for raw in (b"", b'{"cut', b"[]", b"7", b"[" * 100_000, b"\xff"):
        await run(redis.hset(key, field, raw))
        for path in LISTS:
            assert (await http.get(path)).status_code == 200, (path, raw[:9])
    assert "ftjob-whole" in {job["id"] for job in (await http.get(JOBS)).json()["data"]}


async def test_a_damaged_job_is_refused_by_name(http: httpx.AsyncClient, served: Served, redis: Redis) -> None:
    await served.jobs.create(stored_job("ftjob-broken"))
    await run(redis.hset(JobKeys("ftjob-broken").job, "document", b'{"cut'))
    for path in ("", "/events", "/ledger", "/stream", "/workers"):
        error = error_of(await http.get(f"{JOBS}/ftjob-broken{path}"), 400)
        assert error["code"] == "damaged"
        assert JobKeys("ftjob-broken").job in error["message"]
        assert "restore it from a copy" in error["message"]


async def test_data_of_the_wrong_type_is_an_error_of_ours_and_not_redis_away(
    http: httpx.AsyncClient, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(redis.set(keys.JOBS, "no sorted set"))
    response = await http.get(JOBS)
    assert error_of(response, 500)["code"] == "internal_error"
    assert response.headers["x-request-id"] in capsys.readouterr().out


async def test_a_damaged_key_opens_nothing(keyed: Keyed, redis: Redis) -> None:
    [digest] = [d for d, r in (await run(redis.hgetall(keys.API_KEYS))).items() if b'"alice"' in r]
    whole = await run(redis.hget(keys.API_KEYS, digest))
    async with keyed.http(keyed.alice) as alice, keyed.http(keyed.admin) as admin:
        for what, raw in damages(whole, seed=2):
            with suppress(NotAuthenticated):
                decode_key(raw)
                continue  # a flipped bit, and still a record: Redis' checksum is there for that
            await run(redis.hset(keys.API_KEYS, digest, raw))
            refused = await alice.get("/v1/models")
            assert refused.status_code == 401, what
            assert (await admin.get("/v1/headrace/keys")).status_code == 200, what


async def test_an_upload_that_changed_or_is_gone_is_refused_by_name(
    client: AsyncOpenAI, http: httpx.AsyncClient, served: Served, training_file: str
) -> None:
    stored = served.data_dir / "files" / training_file
    whole = stored.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o600
    for raw in (whole[:-1], whole[: len(whole) // 2], whole.replace(b"93", b"94", 1), whole + rows(1), b""):
        stored.write_bytes(raw)
        error = error_of(await http.post(JOBS, json=body(training_file)), 400)
        assert (error["code"], "train.jsonl is not what was uploaded" in error["message"]) == ("invalid_data", True)
        expected = 200 if len(raw) == len(whole) else 400
        assert (await http.get(f"/v1/files/{training_file}/content")).status_code == expected
    stored.unlink()
    assert "No such file" in error_of(await http.post(JOBS, json=body(training_file)), 400)["message"]
    error = error_of(await http.get(f"/v1/files/{training_file}/content"), 400)
    assert (error["code"], "upload it again" in error["message"]) == ("damaged", True)
    assert (await client.files.delete(training_file)).deleted
    assert await served.jobs.all() == []


# ── model folders ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_damaged_model_folder_is_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model" / name
    source = ADDER / "model" / name
    whole = source.read_bytes() if source.is_file() else b"{% for m in messages %}{{ m.content }}{% endfor %}"
    named = 0
    for what, raw in damages(whole[:4000] if name == "tokenizer.json" else whole):
        folder = changed(ADDER / "model", file, raw)
        try:
            assert (Model(MODEL, folder, 0.0, "headrace").context or 1) > 0
            assert next(PromptCounter(folder).sizes([[{"role": "user", "content": "2 + 2"}]])).tokens >= 0
        except InvalidRequest as error:  # `Damaged`, or what the template says of the messages
            told = isinstance(error, Damaged)
            assert (str(folder) if told else "the model's chat template refuses") in error.message, what  # noqa: PT017
            assert "restore" in error.message or not told  # noqa: PT017
            named += 1
    assert named > 5


async def test_a_job_on_a_damaged_model_is_refused(http: httpx.AsyncClient, training_file: str, tmp_path: Path) -> None:
    folder = changed(ADDER / "model", tmp_path / "model" / "config.json", b'{"max_position_embeddings": "many"}')
    error = error_of(await http.post(JOBS, json=body(training_file, model=str(folder))), 400)
    assert (error["code"], error["param"]) == ("damaged", "model")
    assert "gives a context of 'many'" in error["message"]


async def test_a_chat_with_a_damaged_checkpoint_is_refused_and_the_list_goes_on(
    http: httpx.AsyncClient, served: Served
) -> None:
    await served.jobs.create(stored_job("ftjob-1", status="succeeded"))
    folder = served.data_dir / "jobs" / "ftjob-1" / "checkpoints" / "step-1"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"cut')
    await served.jobs.add_checkpoint("ftjob-1", Checkpoint("ftckpt-1", 1.0, 1, "ft:m:headrace::1", str(folder)))
    assert "ft:m:headrace::1" in {m["id"] for m in (await http.get("/v1/models")).json()["data"]}
    job = body("file-none", model="ft:m:headrace::1")
    assert error_of(await http.post(JOBS, json=job), 400)["code"] in ("damaged", "file_not_found")
    with pytest.raises(WeightsDamaged, match=r"no model.safetensors; export another step"):
        model_folder.copy(folder / "model", served.data_dir / "copy")


def test_the_copy_of_a_damaged_checkpoint_is_refused_whatever_is_damaged(tmp_path: Path) -> None:
    weights = (ADDER / "model" / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header, rest = weights[: 8 + length], weights[8 + length :]
    named = 0
    for number, (what, raw) in enumerate(damages(header, seed=3)):
        folder = changed(ADDER / "model", tmp_path / "model" / "model.safetensors", raw + rest)
        for link in folder.iterdir():
            if link.is_symlink():
                link.unlink()
        (folder / "config.json").write_bytes((ADDER / "model" / "config.json").read_bytes())
        target = tmp_path / f"copy-{number}"
        try:
            model_folder.copy(folder, target)
        except WeightsDamaged:
            named += 1
            assert not target.exists(), what
    assert named > 20
    assert not list(tmp_path.glob(".copy*"))


def test_a_copy_follows_no_link_out_of_the_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((ADDER / "model" / name).read_bytes())
    (source / "notes.txt").symlink_to("/etc/passwd")
    model_folder.copy(source, tmp_path / "copy")
    assert {f.name for f in (tmp_path / "copy").iterdir()} == {"config.json", "model.safetensors"}


# ── files of the command line and of exports ─────────────────────────────────────────────────────────────────────────


def test_a_damaged_job_file_is_named(tmp_path: Path) -> None:
    whole = (ADDER / "job.toml").read_bytes()
    for name in ("train.jsonl", "validation.jsonl"):
        (tmp_path / name).write_bytes(rows(1))
    path, named = tmp_path / "job.toml", 0
    for what, raw in [*damages(whole, seed=4), ("types", b"model = 1\ntraining_file = [1]\ngrader = 3\n")]:
        path.write_bytes(raw)
        try:
            job_file.read(path)
        except InvalidData as error:
            assert str(path) in error.message, what  # noqa: PT017
            named += 1
    assert named > 10


def test_a_damaged_address_of_redis_is_named(tmp_path: Path) -> None:
    whole = b"unix:///tmp/headrace-redis-abc/redis.sock"
    (tmp_path / "address").write_bytes(whole)
    assert running(tmp_path) == whole.decode()
    for what, raw in [*damages(whole), ("another place", b"redis://attacker:6379"), ("lines", whole + b"\nx")]:
        (tmp_path / "address").write_bytes(raw)
        try:
            assert running(tmp_path).startswith("unix:///"), what
        except Unavailable as error:
            assert f"{tmp_path / 'address'} is damaged" in error.message, what  # noqa: PT017


def test_a_damaged_bookmark_begins_the_export_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * 10)
    whole = json.dumps({"number": 7, "step": 2, "size": 10, "complete": False}).encode()
    (tmp_path / "cursor.json").write_bytes(whole)
    assert read_cursor(tmp_path) == Cursor(7, 2, 10, False)
    begun_again = 0
    for what, raw in damages(whole, seed=5):
        (tmp_path / "cursor.json").write_bytes(raw)
        found = read_cursor(tmp_path)
        assert found.size <= 10, what
        assert min(found.number, found.size) >= 0, what
        begun_again += found == Cursor()
    assert begun_again > 20


async def test_every_job_that_can_be_read_is_reconciled(redis: Redis) -> None:
    store = JobStore(redis)
    for job_id in ("ftjob-a", "ftjob-broken", "ftjob-b"):
        await store.create(stored_job(job_id, status="running"))
    await run(redis.hset(JobKeys("ftjob-broken").job, "document", b"\x00"))
    assert {job.id for job in await store.all() if job.status == "running"} == {"ftjob-a", "ftjob-b"}
