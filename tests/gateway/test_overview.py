"""All jobs in short: what is shown, how it is paged; its cost does not grow with what the jobs have measured."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import TypeAdapter

from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.types.job import JobError
from headrace_core.types.metrics import EvaluationMetrics
from headrace_core.types.staleness import Limits
from headrace_gateway.schemas.observe import OverviewList
from headrace_lab.services.jobs import stored_job

from .conftest import MODEL, Served
from .test_observe import EVALUATION, step

OVERVIEW = "/v1/headrace/overview"


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        yield client


async def running(jobs: JobStore, name: str, created_at: float, steps: int) -> str:
    await jobs.create(stored_job(name, created_at=created_at, total_steps=100, suffix="s"))
    await jobs.move(name, "queued")
    await jobs.move(name, "running")
    for number in range(1, steps + 1):
        await jobs.record(name, step(number, number / 100))
    return name


async def test_a_job_in_short(http: httpx.AsyncClient, served: Served) -> None:
    name = await running(served.jobs, "ftjob-1", 7.5, 50)
    await Ledger(served.redis, name).open(Limits(batch_size=1, max_staleness=2, total_groups=10))
    evaluation: EvaluationMetrics = EVALUATION
    await served.jobs.record(name, evaluation)
    (shown,) = (await http.get(OVERVIEW)).json()["data"]
    assert shown.pop("spark") == {
        "reward": pytest.approx([(2 * i + 1.5) / 100 for i in range(25)]),
        "age": [2.0] * 25,
    }
    assert shown == {
        "id": "ftjob-1", "object": "headrace.overview.job", "status": "running", "model": MODEL, "suffix": "s",
        "created_at": 7, "finished_at": None, "step": 0, "total_steps": 100, "reward_mean": 0.5,
        "evaluation_reward_mean": 0.75, "max_staleness": 2, "largest_age": 0, "largest_age_bound": None,
        "estimated_finish": 200, "error": None,
    }  # fmt: skip


async def test_a_job_that_has_measured_nothing_and_one_that_failed(http: httpx.AsyncClient, served: Served) -> None:
    await served.jobs.create(stored_job("ftjob-1"))
    await served.jobs.create(stored_job("ftjob-2", created_at=2.0))
    await served.jobs.move("ftjob-2", "failed", JobError("worker_error", "it ended", None))
    failed, fresh = (await http.get(OVERVIEW)).json()["data"]
    assert fresh["spark"] == {"reward": [], "age": []}
    assert (fresh["step"], fresh["reward_mean"], fresh["estimated_finish"], fresh["error"]) == (0, None, None, None)
    assert failed["error"] == {"code": "worker_error", "message": "it ended", "param": None}
    assert failed["finished_at"] >= int(time.time()) - 60


async def test_pages_newest_first(http: httpx.AsyncClient, served: Served) -> None:
    names = [await running(served.jobs, f"ftjob-{n}", float(n), 0) for n in range(5)]
    seen: list[str] = []
    more = True
    while more:
        page = (await http.get(OVERVIEW, params={"limit": 2} | ({"after": seen[-1]} if seen else {}))).json()
        TypeAdapter(OverviewList).validate_python(page)
        seen += [job["id"] for job in page["data"]]
        more = page["has_more"]
    assert seen == names[::-1]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "ftjob-none"}, {"after": "x" * 201}):
        assert (await http.get(OVERVIEW, params=wrong)).status_code == 400, wrong


async def commands(served: Served) -> dict[str, int]:
    stats = await served.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): of["calls"] for name, of in stats.items()}


async def test_the_cost_does_not_grow_with_what_was_measured(http: httpx.AsyncClient, served: Served) -> None:
    for number in range(20):
        await running(served.jobs, f"ftjob-{number}", float(number), 300 if number == 3 else 3)
    await served.redis.config_resetstat()
    for path in (OVERVIEW, "/metrics", "/v1/fine_tuning/jobs/ftjob-3"):
        assert (await http.get(path)).status_code == 200
    asked = await commands(served)
    assert not {"xrange", "xrevrange", "xread"} & set(asked)  # the streams are not touched
    largest = max(len(str(j)) for j in (await http.get(OVERVIEW)).json()["data"])
    assert largest < 3000


async def test_many_jobs_are_scraped_at_once(http: httpx.AsyncClient, served: Served) -> None:
    for number in range(30):
        await running(served.jobs, f"ftjob-{number}", float(number), 2)
    text = (await http.get("/metrics")).text
    assert len(re.findall(r"^headrace_reward_mean\{", text, re.MULTILINE)) == 30
    assert 'headrace_jobs{status="running"} 30.0' in text
