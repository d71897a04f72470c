"""Examples of the docs that need a client and a gateway alone: sent to a real one, as they stand there."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.types.staleness import Limits
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ROOT
from headrace_lab.services.command_line import headrace
from headrace_lab.services.jobs import stored_job
from tests.gateway.conftest import rows, upload
from tests.gateway.keyed import Keyed, gateway

from .test_docs import DOCS, PAGES, blocks, name_of

README, API = ROOT / "README.md", DOCS / "api.md"
JOB = "ftjob-1"
LOCAL = re.compile(r"(?:http://)?(?:127\.0\.0\.1|localhost):8000")
_LINE = re.compile(
    r"^(?:    )?((?:curl|headrace jobs (?:list|show|logs|set|pause)|headrace checkpoints list) .*)$", re.MULTILINE
)


@pytest.fixture
async def served(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Keyed]:
    async with gateway(Settings(data_dir=tmp_path), redis, redis_server.url) as served:
        yield served


def lines() -> list[Any]:
    """Commands that look at a job or change its settings, wherever the docs show them; not those that print help."""
    found = [
        (name_of(page), text) for page in PAGES if page.name != "cli.md" for text in _LINE.findall(page.read_text())
    ]
    return [pytest.param(text, id=f"{page}-{number}") for number, (page, text) in enumerate(found)]


def requested(words: list[str], address: str) -> httpx.Request:
    """What `curl` would send, of the options that the docs use."""
    options = argparse.ArgumentParser(exit_on_error=False)
    options.add_argument("-s", action="store_true")
    options.add_argument("-X", default=None)
    options.add_argument("-H", action="append", default=[])
    options.add_argument("-d", default=None)
    options.add_argument("url")
    given = options.parse_args(words)
    headers = dict(header.split(": ", 1) for header in given.H)
    method = given.X or ("GET" if given.d is None else "POST")
    return httpx.Request(method, LOCAL.sub(address, given.url), headers=headers, content=given.d)


@pytest.mark.slow
async def test_the_readmes_jobs_are_taken(served: Keyed, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks for OpenAI's client, one after the other, but for the chat with a model that is trained by then."""
    monkeypatch.chdir(ROOT)
    shown = [text for text in blocks(README, "python") if "client." in text and "chat.completions" not in text]
    program = LOCAL.sub(served.url, "\n".join(shown))
    assert program.count("jobs.create(") == 2

    def run() -> dict[str, Any]:
        with ExitStack() as opened:
            names: dict[str, Any] = {"open": lambda *of: opened.enter_context(open(*of))}
            exec(compile(program, "README.md", "exec"), names)  # noqa: S102 - the example
            names["client"].close()
        return names

    names = await asyncio.to_thread(run)
    assert names["job"].status == "queued"
    first, second = sorted(await JobStore(redis).all(), key=lambda job: job.created_at)
    assert (first.id, first.total_steps) == (names["job"].id, 40)
    assert second.rows == 1000


async def test_the_body_of_the_rest_page_is_taken(served: Keyed) -> None:
    (shown,) = [json.loads(text) for text in blocks(API, "json") if '"training_file"' in text]
    async with served.http() as http:
        file = (await http.post("/v1/files", **upload(rows(64)))).json()["id"]
        answer = await http.post("/v1/fine_tuning/jobs", json=shown | {"training_file": file, "validation_file": file})
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == shown["metadata"]


@pytest.mark.parametrize("line", lines())
async def test_a_command_is_answered(served: Keyed, redis: Redis, line: str) -> None:
    settings = Hyperparameters(max_staleness=2, n_steps=10, max_context=512, learning_rate=1e-4)
    await JobStore(redis).create(stored_job(JOB, status="running", rows=8, hyperparameters=settings.model_dump()))
    ledger = Ledger(redis, JOB)
    await ledger.open(Limits(batch_size=8, max_staleness=2, total_groups=40))
    await ledger.admit("rollout-0", 0, 20, 60.0)  # one of them has the number that the docs name
    words = shlex.split(line.replace("$JOB", JOB), comments=True)
    if words[0] == "curl":
        words = [part for word in words[1:] for part in (["-s", "-X"] if word == "-sX" else [word])]
        async with httpx.AsyncClient(timeout=30) as http:
            answer = await http.send(requested(words, served.url))
        assert answer.status_code == 200, answer.text
        assert answer.json()
        return
    done = await asyncio.to_thread(headrace, *words[1:], HEADRACE_URL=served.url, COLUMNS="160")
    assert done.exit_code == 0, (done.output, done.exception)


def test_enough_of_them_are_found() -> None:
    found = [param.values[0] for param in lines()]
    assert sum(str(line).startswith("curl") for line in found) >= 6
    assert len(found) >= 14
