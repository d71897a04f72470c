"""Damaged records in Redis, by the real readers: named, passed over in lists, never anything but our own error."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import Damaged, WireError
from headrace_core.jobs.history import event_of
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.jobs.weight_publications import Publication, Publications
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Step
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Checkpoint, Event, Job
from headrace_core.types.metrics import RewardMetrics, WorkerMetrics
from headrace_core.types.trajectory import F32, I32, U8, Completion, Group, decode, encode
from headrace_lab.faults.byte_damage import WRONG_JSON, damages

JOB = "ftjob-1"


def a_job(job_id: str, created_at: float = 1.0) -> Job:
    return Job(
        id=job_id,
        created_at=created_at,
        model="m",
        model_path="/m",
        training_file="file-1",
        hyperparameters={"n_steps": 3},
        status="running",
    )


def a_group() -> Group:
    completion = Completion(
        token_ids=np.arange(3, dtype=I32),
        logprobs=np.full(3, -0.5, F32),
        versions=np.zeros(3, I32),
        roles=np.ones(3, U8),
        loss_weights=np.ones(3, F32),
        finish_reason="stop",
        reward=1.0,
    )
    return Group(
        group_id=7,
        attempt=1,
        row=0,
        admitted_version=0,
        prompt_ids=np.arange(2, dtype=I32),
        completions=(completion,) * 2,
    )


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis)


RECORDS = [
    a_job(JOB),
    Checkpoint("ftckpt-1", 1.0, 5, "ft:m", "/data/jobs/1/checkpoints/step-5"),
    Event("", 1.0, "info", "Queued"),
    Publication(1, "v00000001-t1", 10, 0.1, 1.0),
    WorkerMetrics(worker="w", role="rollout", state="starting", time=1.0, version=0, uptime=0, busy=0, waiting={}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_damaged_record_is_read_as_one_of_its_kind_or_named(record: msgspec.Struct) -> None:
    """A flipped bit may leave another good record: what is damaged unseen is Redis' own checksum's to find."""
    named = 0
    for what, raw in damages(msgspec.json.encode(record)):
        try:
            found = decode_record(raw, type(record), "headrace:jobs ftjob-1")
        except Damaged as error:
            assert error.message.startswith("headrace:jobs ftjob-1 in Redis cannot be read: "), what  # noqa: PT017
            assert "restore it from a copy" in error.message  # noqa: PT017
            named += 1
        else:
            assert type(found) is type(record), what
    assert named > 20


def test_a_damaged_group_is_a_group_or_a_wire_error() -> None:
    whole = encode(a_group())
    named = 0
    for what, raw in damages(whole):
        try:
            assert isinstance(decode(raw), Group), what
        except WireError:
            named += 1
    assert named > 20
    with pytest.raises(WireError, match="upgrade the older side"):
        decode(whole[:1] + b"\x63" + whole[2:])


async def test_one_damaged_job_breaks_no_list(store: JobStore, redis: Redis) -> None:
    for number in range(3):
        await store.create(a_job(f"ftjob-{number}", created_at=number))
    for what, raw in damages(msgspec.json.encode(a_job("ftjob-1")), seed=1):
        await run(redis.hset(JobKeys("ftjob-1").job, "document", raw))
        whole, broken = await store.readable_and_damaged()
        listed = [job.id for job in await store.all()]
        assert listed == [job.id for job in whole], what
        assert sorted([*listed, *broken]) == ["ftjob-0", "ftjob-1", "ftjob-2"], what
        assert {"ftjob-0", "ftjob-2"} <= set(listed), what


@pytest.mark.parametrize("field", ["error", "pace", "trained_tokens", "finished_at", "status", "live:group_size"])
@pytest.mark.parametrize("raw", [*WRONG_JSON, b'{"cut'])
async def test_a_damaged_field_beside_the_document_is_named_or_taken(
    store: JobStore, redis: Redis, field: str, raw: bytes
) -> None:
    await store.create(a_job(JOB))
    await run(redis.hset(JobKeys(JOB).job, field, raw))
    try:
        assert isinstance(await store.get(JOB), Job)
    except Damaged as error:
        assert JobKeys(JOB).job in error.message  # noqa: PT017


async def test_a_job_without_a_document_and_one_that_is_no_hash_are_named(store: JobStore, redis: Redis) -> None:
    await store.create(a_job("ftjob-0"))
    await run(redis.zadd(keys.JOBS, {"ftjob-1": 1.0, "ftjob-2": 2.0}))
    await run(redis.hset(JobKeys("ftjob-1").job, "status", "running"))
    await run(redis.set(JobKeys("ftjob-2").job, "text"))
    _, broken = await store.readable_and_damaged()
    assert "Input data was truncated" in broken["ftjob-1"].message
    assert "WRONGTYPE" in broken["ftjob-2"].message
    assert [job.id for job in await store.all()] == ["ftjob-0"]
    with pytest.raises(Damaged, match="truncated"):
        await store.get("ftjob-1")


async def test_damaged_fields_of_a_jobs_hashes_are_passed_over(
    store: JobStore, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    await store.create(a_job(JOB))
    checkpoint = Checkpoint("ftckpt-1", 1.0, 5, "ft:m", "/data")
    await store.add_checkpoint(JOB, checkpoint)
    await store.record_worker_start(JOB, "rollout-0", "rollout")
    for key in (JobKeys(JOB).checkpoints, JobKeys(JOB).workers, JobKeys(JOB).rewards):
        await run(redis.hset(key, "damaged", b'{"cut'))
    for _ in range(2):
        assert await store.checkpoints(JOB) == [checkpoint]
        assert [w.worker for w in await store.workers(JOB)] == ["rollout-0"]
        assert await store.rewards(JOB) == list[RewardMetrics]()
    said = capsys.readouterr().out
    assert said.count(f"{JobKeys(JOB).checkpoints} damaged in Redis cannot be read") == 1  # said once


async def test_a_damaged_event_says_so_in_its_place(store: JobStore, redis: Redis) -> None:
    await store.create(a_job(JOB))
    await store.emit_event(JOB, "Queued")
    await run(redis.xadd(JobKeys(JOB).history("event"), {"source": "event", "data": b'{"cut'}, id="2-0"))
    events = [event_of(JOB, e) for e in await store.history.after(JOB, 0, 10)]
    assert [e.level for e in events] == ["info", "error"]
    assert "this entry of the job's history is damaged" in events[1].message


async def test_a_damaged_line_of_what_changed_is_not_passed_over(redis: Redis) -> None:
    """Without it, nobody knows which settings hold."""
    await run(redis.rpush(JobKeys(JOB).changes, b'{"time": 1.0}'))
    with pytest.raises(Damaged, match=r"changes\[0\] in Redis"):
        await SettingsLog(redis, JOB, Hyperparameters.model_validate({"n_steps": 3})).refresh()


async def test_publications_that_are_damaged_are_passed_over(redis: Redis) -> None:
    whole = Publication(1, "v00000001-t1", 10, 0.1, 1.0)
    await run(redis.rpush(JobKeys(JOB).published, b"\x00", msgspec.json.encode(whole)))
    assert await Publications(redis, JOB).last() == [whole]


async def test_a_damaged_step_or_group_of_the_ledger_is_named(redis: Redis) -> None:
    ledger, of = Ledger(redis, JOB), JobKeys(JOB)
    await run(redis.hset(of.ledger, "version", 1))
    await run(redis.hset(of.steps, "0", b'{"version": 0, "groups": [7], "ages": {"0": 3}, "masked_tokens": 0}'))
    assert await ledger.steps() == [Step(0, (7,), {0: 3}, 0)]
    await run(redis.hset(of.steps, "0", b'{"version": 0, "groups": 7}'))
    with pytest.raises(Damaged, match=r"steps 0 in Redis"):
        await ledger.steps()
    entry = await run(redis.xadd(of.groups, {"data": b"\x93"}))
    await run(redis.hset(of.group(7), "entry", entry))
    with pytest.raises(WireError, match="group 7 in Redis cannot be read"):
        await ledger.groups([7])
