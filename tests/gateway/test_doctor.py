"""`headrace doctor` on this machine: what is there, what is named when something is not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from headrace_core.settings import Settings
from headrace_gateway import cli
from headrace_gateway.doctor import Check, Finding, engine_imports, machine, ray_starts, redis_starts, storage

from .conftest import Served

NOWHERE = "http://127.0.0.1:9"


async def doctor(url: str, *arguments: str, **environment: str) -> Result:
    variables = {"HEADRACE_URL": url, **environment}
    return await asyncio.to_thread(CliRunner(env=variables).invoke, cli.app, ["doctor", *arguments])


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
    told = await doctor(NOWHERE, HEADRACE_PORT="none")
    assert told.exit_code == 1
    assert "port:" in getattr(told.exception, "message", "")


def test_a_redis_of_ones_own_is_asked() -> None:
    told = found(storage, redis_url="redis://127.0.0.1:9/0")["redis"]
    assert (told.level, told.remedy) == ("fail", "start it, or mend HEADRACE_REDIS_URL")
    assert found(storage)["redis"].level == "ok"


def test_folders_that_are_not_there_yet_are_looked_at_above(tmp_path: Path) -> None:
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
