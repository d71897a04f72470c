"""Exports of a job's measurements, read back by the programs they are for; what dies goes on where it was."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidState
from headrace_core.jobs.history import KINDS
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Job
from headrace_core.types.metrics import WorkerMetrics
from headrace_gateway.exporters.export_loop import Cursor, FromRedis, export, read_cursor
from headrace_gateway.exporters.export_processes import ATTEMPTS, ExportProcesses
from headrace_gateway.exporters.series import SERIES, point
from headrace_gateway.exporters.targets import Target
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.services.command_line import headrace
from headrace_lab.services.jobs import stored_job
from headrace_lab.waiting import wait_until_async

from .conftest import Served
from .test_observe import EVALUATION, UPDATE, WORKER, counted, step

SECONDS = 60.0


@pytest.fixture
async def jobs(redis: Redis) -> JobStore:
    """A store with one running job that has trained two steps."""
    found = JobStore(redis)
    await found.create(stored_job(integrations=[]))
    await started(found, "ftjob-1")
    return found


async def started(jobs: JobStore, job_id: str) -> None:
    await jobs.move(job_id, "queued")
    await jobs.move(job_id, "running")
    for measured in (step(1), WORKER, UPDATE, EVALUATION, step(2, 0.6)):
        await jobs.record(job_id, measured)
    await jobs.record_reward(job_id, counted("rollout-0", 1.0, 9.0))


async def carried(jobs: JobStore, target: Target, folder: Path, follow: bool = False) -> Cursor:
    job = {"id": "ftjob-1", "created_at": 1.0, "model": "m", "hyperparameters": {}}
    return await export(FromRedis(jobs, "ftjob-1"), target, folder, job, {}, follow=follow, stop=asyncio.Event())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads the folder."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, round(e.value, 5)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


# ── series ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_measurement_has_series() -> None:
    assert {series.kind for series in SERIES} == set(KINDS) - {"event"}
    assert len({series.name for series in SERIES}) == len(SERIES)


def test_a_figure_that_there_is_not_has_no_scalar() -> None:
    age = {"tokens": 10, "masked": 10}
    data: dict[str, Any] = dict.fromkeys(step(1).__struct_fields__, 0.0)
    data |= {
        "step": 7,
        "reward_mean": None,
        "components": {"exact": 0.5},
        "extra": {},
        "seconds": {},
        "ages": {"5": age},
    }
    made = point("step", data, step=0)
    assert made.step == 7
    assert "reward/mean" not in made.values
    assert "staleness/age_max" not in made.values  # all were masked
    assert (made.values["reward/component/exact"], made.values["staleness/tokens_of_age/5"]) == (0.5, 10.0)


def test_a_worker_that_has_just_started_has_no_busy_share() -> None:
    data = dict.fromkeys(WorkerMetrics.__struct_fields__, 0) | {"worker": "learner", "waiting": {}, "errors": {}}
    made = point("worker", data | {"version": 3}, step=0)
    assert (made.step, made.values["worker/learner/tokens"]) == (3, 0.0)
    assert "worker/learner/busy_share" not in made.values


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_json_lines_are_the_entries(jobs: JobStore, tmp_path: Path) -> None:
    cursor = await carried(jobs, "jsonl", tmp_path)
    found = lines(tmp_path)
    assert [line["kind"] for line in found] == ["step", "worker", "update", "evaluation", "step", "reward"]
    assert found[0]["data"]["reward_mean"] == 0.5
    assert (cursor.number, cursor.step, cursor.complete) == (int(found[-1]["id"]), 2, False)


async def test_what_died_goes_on_where_it_was(jobs: JobStore, tmp_path: Path) -> None:
    """Killed after it wrote, and before it noted so: what the cursor does not cover is cut and written again."""
    for target in ("jsonl", "tensorboard"):
        await carried(jobs, target, tmp_path / target)
        [file] = [f for f in (tmp_path / target).iterdir() if f.stat().st_size > 100]
        with file.open("ab") as more:
            more.write(file.read_bytes()[:70])
    await jobs.record("ftjob-1", step(3, 0.7))
    await jobs.move("ftjob-1", "succeeded")
    for target in ("jsonl", "tensorboard"):
        assert (await carried(jobs, target, tmp_path / target)).complete  # type: ignore[arg-type]
    assert [line["data"]["step"] for line in lines(tmp_path / "jsonl") if line["kind"] == "step"] == [1, 2, 3]
    assert scalars(tmp_path / "tensorboard")["reward/mean"] == [(1, 0.5), (2, 0.6), (3, 0.7)]


async def test_a_file_that_was_lost_is_made_again(jobs: JobStore, tmp_path: Path) -> None:
    await carried(jobs, "jsonl", tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    await carried(jobs, "jsonl", tmp_path)
    assert len(lines(tmp_path)) == 6
    (tmp_path / "cursor.json").write_bytes(b"")
    await carried(jobs, "jsonl", tmp_path)
    assert len(lines(tmp_path)) == 6


async def test_tensorboard_reads_all_series(jobs: JobStore, tmp_path: Path) -> None:
    await carried(jobs, "tensorboard", tmp_path)
    found = scalars(tmp_path)
    assert found["reward/mean"] == [(1, 0.5), (2, 0.6)]
    assert found["validation/reward_mean"] == [(1, 0.75)]
    assert found["update/rollout-0/paused_seconds"] == [(1, 0.002)]
    assert found["worker/rollout-0/busy_share"] == [(1, round(7 / 9, 5))]
    assert found["scoring/rollout-0/failures/timeout"] == [(2, 1.0)]  # at the newest step before it
    assert found["staleness/age_max"] == [(1, 2.0), (2, 2.0)]


async def test_one_export_at_a_time_writes_a_folder(jobs: JobStore, tmp_path: Path) -> None:
    first = asyncio.create_task(carried(jobs, "jsonl", tmp_path, follow=True))
    await wait_until_async(lambda: read_cursor(tmp_path).number > 0, "the first export has written")
    async with asyncio.timeout(SECONDS):
        with pytest.raises(InvalidState, match="another export"):
            await carried(jobs, "jsonl", tmp_path)
        await jobs.move("ftjob-1", "succeeded")
        assert (await first).complete


# ── beside the gateway ───────────────────────────────────────────────────────────────────────────────────────────────


async def until(exports: ExportProcesses, folder: Path, complete: bool, number: int = 1) -> None:
    """Reconcile until the folder has that much."""

    async def is_there() -> bool:
        cursor = read_cursor(folder)
        if cursor.number >= number and cursor.complete >= complete:
            return True
        await exports.reconcile()
        return False

    await wait_until_async(is_there, lambda: f"{folder} has entry {number}: {read_cursor(folder)}", pause=0.05)


async def test_a_job_is_exported_while_it_runs_and_across_gateways(
    jobs: JobStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, exports=("jsonl", "tensorboard"))
    for last in (False, True):
        exports = ExportProcesses(settings, redis_server.url, jobs)
        folder = exports.folder("ftjob-1", "jsonl")
        await until(exports, folder, complete=False, number=8 if last else 6)
        if last:
            await jobs.move("ftjob-1", "succeeded")
            await until(exports, folder, complete=True)
            await until(exports, exports.folder("ftjob-1", "tensorboard"), complete=True)
        await exports.close()
        await jobs.record("ftjob-1", step(3, 0.7))
        await jobs.record("ftjob-1", step(4, 0.8))
    assert [line["data"]["step"] for line in lines(folder) if line["kind"] == "step"] == [1, 2, 3, 4]
    rewards = scalars(tmp_path / "jobs" / "ftjob-1" / "exports" / "tensorboard")["reward/mean"]
    assert [number for number, _ in rewards] == [1, 2, 3, 4]


def wandb_job() -> Job:
    project = {"project": "p", "entity": None, "name": "my run", "tags": ["a"]}
    return stored_job("ftjob-w", integrations=[{"type": "wandb", "wandb": project}])


@pytest.mark.slow
async def test_a_run_at_wandb_offline(
    jobs: JobStore, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    await jobs.create(wandb_job())
    await started(jobs, "ftjob-w")
    exports = ExportProcesses(Settings(data_dir=tmp_path), redis_server.url, jobs)
    folder = exports.folder("ftjob-w", "wandb")
    await until(exports, folder, complete=False, number=6)
    await jobs.move("ftjob-w", "succeeded")
    await until(exports, folder, complete=True)
    await exports.close()
    [file] = folder.rglob("run-ftjob-w.wandb")
    records = list(map(Record.FromString, leveldb_records(file.read_bytes())))
    [run] = [r.run for r in records if r.HasField("run")]
    assert (run.project, run.display_name, list(run.tags), run.run_id) == ("p", "my run", ["a"], "ftjob-w")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["max_staleness"], config["model"]) == (2, "headrace/tiny-adder")
    logged = [{i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in r.history.item}
              for r in records if r.HasField("history")]  # fmt: skip
    assert [(row["step"], row["reward/mean"]) for row in logged if "reward/mean" in row] == [(1, 0.5), (2, 0.6)]
    assert [row["validation/reward_mean"] for row in logged if "validation/reward_mean" in row] == [0.75]


def leveldb_records(content: bytes) -> list[bytes]:
    """The records of a LevelDB log (blocks of 32 KiB; header: CRC, length, type), after wandb's own 7 bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(part)
            part = b""
    return found


@pytest.mark.slow
async def test_an_export_that_fails_says_so_and_disturbs_nothing(
    jobs: JobStore, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc either
    await jobs.create(wandb_job())
    await started(jobs, "ftjob-w")
    exports = ExportProcesses(
        Settings(data_dir=tmp_path, exports=("jsonl",)), redis_server.url, jobs, backoff_seconds=0.0
    )
    told: list[str] = []

    async def gave_up() -> bool:
        told[:] = [event.message for _, event in await jobs.events("ftjob-w") if event.level == "warn"]
        if len(told) < ATTEMPTS:
            await exports.reconcile()
        return len(told) >= ATTEMPTS

    await wait_until_async(gave_up, lambda: f"the job is told of {ATTEMPTS} attempts: {told}", pause=0.05)
    assert "the export to wandb failed, it is tried again" in told[0]
    assert "API key" in told[0] or "api_key" in told[0], told[0]
    assert "given up; `headrace jobs export ftjob-w wandb` does it later" in told[-1]
    await exports.reconcile()
    assert (await jobs.get("ftjob-w")).status == "running"
    await until(exports, exports.folder("ftjob-w", "jsonl"), complete=False, number=6)
    await exports.close()


# ── by command ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_is_exported_by_command(served: Served, tmp_path: Path) -> None:
    await served.jobs.create(stored_job(integrations=[]))
    await started(served.jobs, "ftjob-1")
    for target in ("jsonl", "tensorboard"):
        command = ["jobs", "export", "ftjob-1", target, "--out", str(tmp_path / target), "--url", served.url]
        for state in ("so far", "so far"):
            done = await asyncio.to_thread(headrace, *command)
            assert done.exit_code == 0, (done.output, done.exception)
            assert f"up to step 2, {state}" in " ".join(done.output.split())
    assert len(lines(tmp_path / "jsonl")) == 6
    assert scalars(tmp_path / "tensorboard")["reward/mean"] == [(1, 0.5), (2, 0.6)]
