"""Every record that Redis keeps, damaged one at a time: no route fails or hangs, lists show the other jobs, and an
answer that cannot be given names the record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from headrace_controller.job_controller import JobController
from headrace_controller.memory_share import MemoryShare
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.jobs.rollout_records import RolloutStore
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.jobs.weight_publications import Publications
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Step, TransitionOutcome
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import API_KEYS_USED, JobKeys
from headrace_core.storage.weight_store import Published
from headrace_core.types.events import StepSummary
from headrace_core.types.job import Checkpoint, Status
from headrace_core.types.staleness import Limits
from headrace_core.types.trajectory import F32, I32, Group, sampled_completion
from headrace_gateway.app import create_app
from headrace_gateway.auth.api_keys import digest
from headrace_gateway.events import job_streams
from headrace_gateway.openapi.document import operations
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ADDER
from headrace_lab.services.jobs import stored_job

from .conftest import Served, rows
from .kept_groups import completion
from .kept_groups import group as kept_group
from .redis_damage import NO_RECORD, TOO_LARGE, damaged_one_by_one
from .test_observe import EVALUATION, UPDATE, WORKER, counted, step

SOUND = "ftjob-sound"
JOB = "/v1/fine_tuning/jobs/{job_id}"
OF_ALL = ("/v1/fine_tuning/jobs", "/v1/headrace/overview", "/v1/models", "/v1/files", "/metrics")
"""What shows every job: it shows the others, whatever is damaged of one."""
OF_JOB = (
    "", "/events", "/checkpoints", "/ledger", "/ledger/2", "/staleness", "/reward", "/metrics",
    "/metrics?from_step=2&kind=step", "/rollouts", "/rollouts?group=1&order=asc", "/settings", "/workers", "/queues",
    "/weights",
)  # fmt: skip
STREAMS = ("/events?stream=true", "/stream", "/stream?thin=2")
OF_OTHERS = ("/healthz", "/readyz", "/v1/models/{name}")
ACCESS = ("/v1/headrace/keys", "/v1/headrace/audit", "/v1/files/{file_id}", "/v1/files/{file_id}/content")
OTHER_GROUPS = [f":group:{number}" for number in (0, 1, 3)]
"""Their records are of the same kinds as those of groups 2, which is claimed, and 4, which is leased."""
NOT_STREAMED = [f":group:{number}" for number in range(5)] + [":steps", ":rollouts", ":rollouts_index", ":marks"]
"""Keys that no stream reads."""


def generated(group_id: int, version: int) -> Group:
    tokens, logprobs = np.array([5, 6, 7], I32), np.full(3, -0.5, F32)
    done = sampled_completion(tokens, logprobs, np.full(3, version, I32), "stop", reward=1.0)
    return Group(group_id, 1, 0, version, np.array([1, 2], I32), (done, done))


async def full_job(redis: Redis, job_id: str, status: Status) -> None:
    """A job with a record of every kind."""
    jobs, ledger = JobStore(redis), Ledger(redis, job_id)
    settings = Hyperparameters.model_validate({"n_steps": 10, "batch_size": 1, "max_staleness": 5})
    model = str(ADDER / "model")
    await jobs.create(stored_job(job_id, model_path=model, hyperparameters=settings.model_dump()))
    await jobs.move(job_id, "queued")
    await jobs.move(job_id, "running")
    await jobs.emit_event(job_id, "Step 1/10", type="metrics", data=StepSummary.of(step(1), 5))
    await jobs.emit_event(job_id, "hello")
    await ledger.open(Limits(batch_size=1, max_staleness=5, total_groups=10))
    leases = (await ledger.admit("rollout-0", 0, 5, 60.0)).leases
    await ledger.fail(leases[0], TransitionOutcome.REWARD_FAILED, "no such thing")
    for lease in leases[1:4]:
        assert await ledger.commit(lease, generated(lease.group_id, lease.version)) == TransitionOutcome.QUEUED
    await SettingsLog(redis, job_id, settings).change({"max_staleness": 4}, "local")
    term, limits = await ledger.enlist(), Limits(batch_size=1, max_staleness=4, total_groups=10)
    taken = (await ledger.claim(term, limits, "mask", changes=1)).groups[0].group_id
    assert await ledger.settle(term, Step(0, (taken,), {0: 6}, 0), "v1") == TransitionOutcome.SETTLED
    await ledger.claim(term, limits, "mask", changes=1)
    await Publications(redis, job_id).add(Published(1, "v1", ADDER, 10, 0.1))
    await WorkerDrains(redis, job_id).request("rollout-0", 60.0)
    for measured in (step(1), step(2, 0.6), WORKER, UPDATE, EVALUATION):
        await jobs.record(job_id, measured)
    await jobs.record_heartbeat(job_id, WORKER)
    await jobs.record_reward(job_id, counted("rollout-0", 1.0, 9.0))
    mending = RecoveryCounters(redis, job_id)
    await mending.count_action("reissue")
    await mending.count_restart("rollout-0")
    await jobs.add_checkpoint(job_id, Checkpoint(f"ftckpt-{job_id}", 90.0, 1, f"ft:{job_id}", model, {"step": 1}))
    await RolloutStore(redis, job_id).add([kept_group(n, n, [completion("93", n)]) for n in (1, 2)], 10_000_000)
    await run(redis.set(JobKeys(job_id).controller, 1))
    await jobs.update(job_id, trained_tokens=12)
    if status != "running":
        await ledger.close("finished")
        await jobs.move(job_id, status, f"ft:{job_id}")
        await jobs.mark_at_rest(job_id, status)


@pytest.fixture
async def http(served: Served, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client, in this process, of a gateway that has a sound job, a running and an ended one."""
    monkeypatch.setattr(job_streams, "_QUIET_SECONDS", 0.01)  # an ended job's stream ends sooner
    jobs: list[tuple[str, Status]] = [(SOUND, "running"), ("ftjob-running", "running"), ("ftjob-ended", "succeeded")]
    for job_id, status in jobs:
        await full_job(served.redis, job_id, status)
    transport = httpx.ASGITransport(served.server.config.app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=10) as client:
        yield client


def test_every_route_that_is_read_is_read_here() -> None:
    document = create_app(Settings(), "redis://127.0.0.1:1").openapi()
    routes = {path for path, method, _ in operations(document) if method == "get"}
    read = {*OF_ALL, *OF_OTHERS, *ACCESS, *(JOB + path.partition("?")[0] for path in (*OF_JOB, *STREAMS))}
    assert routes == {path.replace("/ledger/2", "/ledger/{group}") for path in read}


@pytest.mark.slow
async def test_a_damaged_record_of_a_running_job_fails_no_route(http: httpx.AsyncClient, served: Served) -> None:
    of_job = [JOB.replace("{job_id}", "ftjob-running") + path for path in OF_JOB]
    await no_route_fails(http, served, "ftjob-running", [*OF_ALL, *of_job], OTHER_GROUPS)


@pytest.mark.slow
async def test_a_damaged_record_of_an_ended_job_fails_no_route_and_no_stream(
    http: httpx.AsyncClient, served: Served
) -> None:
    parts = ("", "/workers", "/settings", "/queues", *STREAMS)
    paths = [JOB.replace("{job_id}", "ftjob-ended") + path for path in parts]
    await no_route_fails(http, served, "ftjob-ended", ["/metrics", "/v1/models/ft:ftjob-ended", *paths], NOT_STREAMED)


async def no_route_fails(
    http: httpx.AsyncClient, served: Served, job: str, paths: list[str], but: Sequence[str]
) -> None:
    """Each record of the job is damaged once, and each path read while it is."""
    wrong, number = [], 0
    async for key, record in damaged_one_by_one(served.redis, JobKeys(job).prefix, but):
        number += 1
        for path, response in zip(paths, await asyncio.gather(*map(http.get, paths)), strict=True):
            if fault := fault_of(response, key):
                wrong.append(f"{key} {record}: {path} {fault}")
    assert number > 60
    assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong)


def fault_of(response: httpx.Response, key: str) -> str | None:
    """What is wrong with an answer while a record of that key is damaged."""
    path = response.request.url.path
    if response.status_code == 400:
        error = response.json()["error"]
        named = error["code"] == "damaged" and key in error["message"]
        return None if named and path not in OF_ALL else f"is answered {error}"
    if response.status_code == 404:
        return None if "/ledger/" in path or "/models/" in path else "is not found"
    if response.status_code != 200:
        return f"is answered {response.status_code}"
    try:
        shown = jobs_shown(path, response)
    except ValueError as error:
        return f"is answered what nobody can read: {error}"
    return "lacks the sound job" if path in (*OF_ALL[:2], "/metrics") and SOUND not in shown else None


def jobs_shown(path: str, response: httpx.Response) -> set[str | None]:
    """Raises `ValueError` where the answer is not of its kind."""
    if path == "/metrics":
        samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
        return {sample.labels.get("job") for sample in samples}
    if not response.headers["content-type"].startswith("text/event-stream"):
        return {each.get("id") for each in json.loads(response.content).get("data", ())}
    lines = [line.partition(b": ") for line in response.content.split(b"\n")]
    names = [value for name, _, value in lines if name == b"event"]
    data = [json.loads(value) for name, _, value in lines if name == b"data" and value != b"[DONE]"]
    if b"error" in names or (b"data", b": ", b"[DONE]") not in lines or not all(isinstance(d, dict) for d in data):
        raise ValueError(f"the stream broke: {response.content[-200:]!r}")
    return set()


@pytest.mark.parametrize("record", ["document", "status", "pace"])
async def test_a_job_whose_record_is_damaged_is_cancelled_and_its_controller_asked_to_end_it(
    http: httpx.AsyncClient, served: Served, record: str
) -> None:
    await run(served.redis.hset(JobKeys("ftjob-running").job, record, NO_RECORD))
    job = JOB.replace("{job_id}", "ftjob-running")
    for act in ("pause", "resume"):
        refused = await http.post(f"{job}/{act}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "damaged"), act
    cancelled = await http.post(f"{job}/cancel")
    assert cancelled.status_code == (200 if record == "status" else 400)
    if record != "status":
        assert "is cancelled, but cannot be shown" in cancelled.json()["error"]["message"]
    assert await served.jobs.status("ftjob-running") == "cancelled"
    assert "ftjob-running" in served.controllers.cancelled


@pytest.mark.slow
async def test_no_change_of_a_job_with_a_damaged_record_fails_and_it_can_be_cancelled_and_closed(
    http: httpx.AsyncClient, served: Served
) -> None:
    redis, job, wrong = served.redis, JOB.replace("{job_id}", "ftjob-running"), []
    keys = [key async for key in redis.scan_iter("headrace:*")]
    whole = [(key, await run(redis.dump(key))) for key in keys]
    changes: list[tuple[str, str, dict[str, int] | None]] = [
        ("PATCH", "/settings", {"max_staleness": 3}), ("POST", "/workers/rollout-0/drain", None),
        ("POST", "/workers/rollout-0/undrain", None), ("POST", "/pause", None), ("POST", "/resume", None),
        ("POST", "/cancel", None),
    ]  # fmt: skip
    async for key, record in damaged_one_by_one(redis, JobKeys("ftjob-running").prefix, NOT_STREAMED[:4]):
        for method, path, body in changes:
            response = await http.request(method, job + path, json=body)
            if response.status_code not in (200, 400):
                wrong.append(f"{key} {record}: {path} is answered {response.status_code}")
        await Ledger(redis, "ftjob-running").close("cancelled")
        if await served.jobs.status("ftjob-running") != "cancelled":
            wrong.append(f"{key} {record}: it is not cancelled")
        async with redis.pipeline(transaction=True) as pipe:
            pipe.flushall()
            for name, kept in whole:
                pipe.restore(name, 0, kept)
            await pipe.execute()
    assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong)


@pytest.mark.parametrize("bad", [NO_RECORD, TOO_LARGE])
async def test_a_ledger_script_names_the_damaged_figure_and_changes_nothing(redis: Redis, bad: bytes) -> None:
    await full_job(redis, "ftjob-1", "running")
    ledger, key = Ledger(redis, "ftjob-1"), JobKeys("ftjob-1").ledger
    await run(redis.hset(key, "queued", bad))
    before = await run(redis.hgetall(key))
    for call in (ledger.enlist(), ledger.window(), ledger.admit("rollout-1", 1, 1, 60.0), ledger.queues()):
        with pytest.raises(Damaged, match="ledger queued in Redis cannot be read: it is no whole number; restore"):
            await call
    assert await run(redis.hgetall(key)) == before
    assert await ledger.close("cancelled") == 3  # it ends all the same: what is leased, queued and claimed
    assert not await run(redis.exists(JobKeys("ftjob-1").leases, JobKeys("ftjob-1").queued, JobKeys("ftjob-1").claimed))


async def test_another_job_whose_ledger_is_damaged_ends_no_job(redis: Redis, tmp_path: Path) -> None:
    for job_id in ("ftjob-1", "ftjob-2"):
        await full_job(redis, job_id, "running")
    await run(redis.hset(JobKeys("ftjob-2").ledger, "bytes", NO_RECORD))
    jobs, settings = JobStore(redis), Settings(data_dir=tmp_path, redis_memory=100_000_000)
    await MemoryShare(redis, jobs, settings, "ftjob-1").update()
    with pytest.raises(Damaged, match=r"ftjob-2.*ledger bytes"):
        await MemoryShare(redis, jobs, settings, "ftjob-2").update()


@pytest.mark.parametrize("bad", [NO_RECORD, TOO_LARGE])
async def test_a_job_tells_on_whatever_is_damaged_of_its_summary(redis: Redis, bad: bytes) -> None:
    await full_job(redis, "ftjob-1", "running")
    jobs, summary = JobStore(redis), JobKeys("ftjob-1").summary
    for field in await run(redis.hkeys(summary)):
        await run(redis.hset(summary, field, bad))
    before = [number for number, _ in await jobs.events("ftjob-1")]
    await jobs.emit_event("ftjob-1", "it goes on")
    for metrics in (step(3), WORKER, EVALUATION):
        await jobs.record("ftjob-1", metrics)
    number, event = (await jobs.events("ftjob-1"))[-1]
    assert (number > max(before), event.message) == (True, "it goes on")
    assert await jobs.history.last_step("ftjob-1") == 3


async def test_keys_files_and_the_audit_log_are_read_whatever_is_damaged_of_them(
    http: httpx.AsyncClient, served: Served
) -> None:
    gateway = served.server.config.app.state.gateway  # type: ignore[union-attr]
    _, secret = await gateway.keys.create("alice", "user")
    await gateway.keys.open_session(secret)
    stored = await gateway.files.add(BytesIO(rows(8)), "train.jsonl", "fine-tune")
    assert (await http.post("/v1/headrace/keys", json={"name": "bob"})).status_code == 200
    await run(served.redis.hset(API_KEYS_USED, digest(secret), "60"))
    wrong = []
    paths = [path.replace("{file_id}", stored.id) for path in (*ACCESS, *OF_ALL)]
    for prefix in ("headrace:{access}:", "headrace:files", "headrace:jobs", "headrace:requests"):
        async for where, record in damaged_one_by_one(served.redis, prefix):
            for path, response in zip(paths, await asyncio.gather(*map(http.get, paths)), strict=True):
                named = response.status_code in (200, 404) or response.json()["error"]["code"] == "damaged"
                if not named or (response.status_code != 200 and path in OF_ALL):
                    wrong.append(f"{where} {record}: {path} is answered {response.status_code}")
    assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong)


@pytest.mark.parametrize(("key", "field"), [("job", "document"), ("job", "status"), ("ledger", "version")])
async def test_a_running_job_with_a_damaged_record_ends_with_its_name(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, key: str, field: str
) -> None:
    """By a controller that finds it so, as after a restart of the service."""
    await full_job(redis, "ftjob-1", "running")
    name = getattr(JobKeys("ftjob-1"), key)
    await run(redis.hset(name, field, NO_RECORD))
    jobs, settings = JobStore(redis), Settings(data_dir=tmp_path, weights_dir=tmp_path, snapshots_dir=tmp_path)
    controller = JobController.from_config(settings, redis_server.url, "ftjob-1")
    async with asyncio.timeout(20):
        assert await controller._once() == "failed"  # what its actor's `run` repeats until the job is at rest
    assert await jobs.mark_at_rest("ftjob-1", "failed")
    error = json.loads(await run(redis.hget(JobKeys("ftjob-1").job, "error")))
    assert error["code"] == "damaged"
    assert error["message"].startswith(name)
    assert (await jobs.events("ftjob-1"))[-1][1].message == f"failed: {error['message']}"
    await controller._ports.job.close()
