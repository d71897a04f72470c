"""`headrace doctor` on this machine: what it finds, and what it says to do if something is missing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import Result

from headrace_core.config.reward_permissions import SandboxLevel
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_gateway.doctor.machine_checks import (
    Check,
    Finding,
    engine_imports,
    examined,
    machine,
    ray_starts,
    records,
    redis_starts,
    sandbox,
    storage,
)
from headrace_gateway.limited_processes import json_process
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.services import command_line
from headrace_lab.services.jobs import stored_job
from headrace_rewards.sandbox.level_probe import MachineReport

from .conftest import Served

NOWHERE = "http://127.0.0.1:9"


async def doctor(url: str, *arguments: str, **environment: str) -> Result:
    return await asyncio.to_thread(command_line.headrace, "doctor", *arguments, HEADRACE_URL=url, **environment)


def found(check: Check, **settings: Any) -> dict[str, Finding]:
    return {finding.what: finding for finding in check(Settings(**settings), NOWHERE)}


async def test_a_machine_with_a_gateway_is_well(served: Served) -> None:
    told = await doctor(served.url, "--json")
    report = {finding["what"]: finding for finding in json.loads(told.output)}
    assert told.exit_code == 0, told.output
    assert not [finding for finding in report.values() if finding["level"] == "fail"]
    assert report["cores"]["found"] == str(len(os.sched_getaffinity(0)))
    assert (report["gateway"]["level"], report["key"]["level"]) == ("ok", "ok")
    assert {"torch", "ray", "memory", "weights", "disk", "sandbox", "redis"} <= set(report)
    assert "port" not in report  # the gateway has it


async def test_what_fails_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = await doctor(NOWHERE, HEADRACE_PORT=str(taken.getsockname()[1]))
    assert told.exit_code == 1
    assert "fail port" in told.output
    assert "another --port" in told.output
    assert "warn gateway" in told.output


async def test_a_setting_that_is_wrong_is_named() -> None:
    for variable, value in (("PORT", "none"), ("PROT", "8000"), ("REDIS_URL", "redis:/bad")):
        told = await doctor(NOWHERE, **{f"HEADRACE_{variable}": value})
        assert told.exit_code == 1
        assert f"fail settings       HEADRACE_{variable}: " in told.output
        assert "cores" in told.output, "the other checks run all the same"


async def test_what_a_check_meets_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    told = await doctor("no address", HEADRACE_DATA_DIR=str(file), HEADRACE_MODELS_DIR=str(tmp_path / "nowhere"))
    assert told.exit_code == 1
    assert isinstance(told.exception, SystemExit)
    for line in ("fail data folder", "fail models folder", "gateway"):
        assert line in told.output

    def broken(settings: Settings, url: str) -> Iterator[Finding]:
        yield Finding("ok", "first", "found")
        raise RuntimeError("redis://:secret@host fell over")

    found = list(examined([broken, machine], Settings(), NOWHERE))
    assert [finding.level for finding in found[:2]] == ["ok", "fail"]
    assert found[1].found == "RuntimeError: redis://:***@host fell over"
    assert len(found) > 3


def test_an_external_redis_is_asked() -> None:
    told = found(storage, redis_url="redis://127.0.0.1:9/0")["redis"]
    assert (told.level, told.remedy) == ("fail", "start it, or correct HEADRACE_REDIS_URL")
    assert found(storage)["redis"].level == "ok"


def test_a_sandbox_below_the_required_level_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable) as refused:
        MachineReport("filtered", {"isolated": "no namespaces"}).require("isolated")

    async def answered(wanted: SandboxLevel) -> str:
        return refused.value.message

    assert found(sandbox)["sandbox"].level in ("ok", "warn")
    monkeypatch.setattr(json_process, "sandbox", answered)
    report = found(sandbox, reward_sandbox="isolated")["sandbox"]
    assert report.level == "fail"
    assert "lower HEADRACE_REWARD_SANDBOX" in report.remedy


def test_a_missing_folder_is_checked_by_its_nearest_parent(tmp_path: Path) -> None:
    told = found(machine, data_dir=tmp_path / "a" / "b")
    assert told["disk"].found.endswith(f"{tmp_path}/a/b")
    assert told["data folder"].level == "ok"
    assert not (tmp_path / "a").exists()


def test_redis_starts_and_nothing_is_left() -> None:
    assert found(redis_starts)["start Redis"].level == "ok"
    assert found(redis_starts, redis_url="redis://127.0.0.1:9/0") == {}


@pytest.mark.e2e
def test_ray_starts() -> None:
    assert found(ray_starts)["start Ray"].level == "ok"


@pytest.mark.vllm
def test_vllm_imports() -> None:
    assert found(engine_imports)["import vllm"].level == "ok"


async def test_every_damaged_record_is_named(redis: Redis, redis_server: RedisServer) -> None:
    told = await asyncio.to_thread(found, records, redis_url=redis_server.url)
    assert told == {"records": Finding("ok", "records", "all are readable")}
    await JobStore(redis).create(stored_job("ftjob-1"))
    await JobStore(redis).create(stored_job("ftjob-2"))
    places = [
        (JobKeys("ftjob-1").job, "document"), (JobKeys("ftjob-2").checkpoints, "5"), (keys.FILES, "file-1"),
        (keys.API_KEYS, "0" * 64),
    ]  # fmt: skip
    for key, field in places:
        await run(redis.hset(key, field, b'{"cut'))
    named = await asyncio.to_thread(lambda: list(records(Settings(redis_url=redis_server.url), NOWHERE)))
    assert [finding.level for finding in named] == ["warn"] * 4
    assert all(any(key in finding.found for finding in named) for key, _ in places)


async def test_records_are_not_asked_for_where_no_redis_runs(tmp_path: Path) -> None:
    assert await asyncio.to_thread(found, records, data_dir=tmp_path) == {}
