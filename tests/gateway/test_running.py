"""Changing what runs, through the routes: settings on record, workers drained, queues and weights shown."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.weight_publications import Publications
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Refusal
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.storage.weight_store import Published
from headrace_core.types.metrics import UpdateMetrics, WorkerMetrics, WorkerState
from headrace_core.types.staleness import Limits
from headrace_gateway.operations.settings_change import ChangeSettings
from headrace_gateway.schemas.control import QueuesObject, SettingsObject, WeightsObject, WorkerList, WorkerObject
from headrace_lab.services.jobs import stored_job

from .conftest import Served

JOB = "/v1/fine_tuning/jobs/ftjob-1"
SETTINGS = Hyperparameters.model_validate(
    {"n_steps": 10, "batch_size": 4, "max_staleness": 2, "learning_rate": 1e-5, "rollout_workers": 2}
)


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client, and a running job with three leased groups."""
    await served.jobs.create(stored_job(hyperparameters=SETTINGS.model_dump()))
    await served.jobs.move("ftjob-1", "queued")
    await served.jobs.move("ftjob-1", "running")
    ledger = Ledger(served.redis, "ftjob-1")
    await ledger.open(Limits(batch_size=4, max_staleness=2, total_groups=40))
    await ledger.admit("rollout-0", 0, 3, 60.0)
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        yield client


def beat(worker: str, state: WorkerState = "running", ago: float = 0.0) -> WorkerMetrics:
    role = "learner" if worker == "learner" else "rollout"
    return WorkerMetrics(
        worker=worker, role=role, state=state, time=time.time() - ago, version=1, uptime=9, busy=7, waiting={}, tokens=5
    )


async def told(jobs: JobStore) -> list[str]:
    return [event.message for _, event in await jobs.events("ftjob-1")]


async def test_a_change_is_recorded_told_and_shown_everywhere(served: Served, http: httpx.AsyncClient) -> None:
    before = (await http.get(f"{JOB}/settings")).json()
    TypeAdapter(SettingsObject).validate_python(before)
    assert (before["settings"]["max_staleness"], before["changes"]) == (2, [])
    asked = {"max_staleness": 1, "learning_rate": 3e-05, "group_size": 8}  # the last is so already
    found = (await http.patch(f"{JOB}/settings", json=asked)).json()
    TypeAdapter(SettingsObject).validate_python(found)
    assert [(c["name"], c["before"], c["after"], c["from_version"], c["by"]) for c in found["changes"]] == [
        ("max_staleness", 2, 1, 0, "local"),
        ("learning_rate", 1e-05, 3e-05, 0, "local"),
    ]
    assert found == (await http.get(f"{JOB}/settings")).json()
    assert found["settings"] | {"max_staleness": 2, "learning_rate": 1e-05} == before["settings"]
    job = (await http.get(JOB)).json()
    assert job["method"]["reinforcement"]["hyperparameters"] == found["settings"]
    assert "max_staleness 2 → 1 from version 0, by local" in await told(served.jobs)
    assert (await http.get(f"{JOB}/staleness")).json()["max_staleness"] == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"temperature": 0.5}, "these can: max_staleness, group_size, learning_rate"),
        ({}, "at least one"),
        ({"max_staleness": -1}, "max_staleness"),
        ({"max_staleness": 10**30}, "max_staleness"),
        ({"max_staleness": "2"}, "max_staleness"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"group_size": 1}, "group_size must be at least 2"),  # grpo compares the completions of a group
    ],
)
async def test_what_cannot_be_is_refused_with_nothing_changed(
    http: httpx.AsyncClient, asked: dict[str, Any], says: str
) -> None:
    answer = await http.patch(f"{JOB}/settings", json=asked)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert (await http.get(f"{JOB}/settings")).json()["changes"] == []


async def test_an_ended_job_changes_no_more(served: Served, http: httpx.AsyncClient) -> None:
    await served.jobs.move("ftjob-1", "cancelled")
    answer = await http.patch(f"{JOB}/settings", json={"max_staleness": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_state")
    assert (await http.post(f"{JOB}/workers/rollout-0/drain")).status_code == 400
    assert {w["status"] for w in (await http.get(f"{JOB}/workers")).json()["data"]} == {"stopped"}
    assert (await http.patch("/v1/fine_tuning/jobs/none/settings", json={"max_staleness": 1})).status_code == 404


def test_what_may_change_is_bounded_as_at_submission() -> None:
    for name, field in ChangeSettings.model_fields.items():
        given = {type(m).__name__: m for m in field.metadata}
        at_submission = {type(m).__name__: m for m in Hyperparameters.model_fields[name].metadata}
        assert given.items() >= {k: v for k, v in at_submission.items() if k != "AllowInfNan"}.items(), name


async def test_a_worker_is_drained_and_goes_on(served: Served, http: httpx.AsyncClient) -> None:
    for worker in ("learner", "rollout-0"):
        await served.jobs.record_heartbeat("ftjob-1", beat(worker))
    await served.jobs.record_worker_start("ftjob-1", "rollout-1", "rollout")
    listed = (await http.get(f"{JOB}/workers")).json()
    TypeAdapter(WorkerList).validate_python(listed)
    statuses = {w["id"]: w["status"] for w in listed["data"]}
    assert statuses == {"learner": "running", "rollout-0": "running", "rollout-1": "starting"}

    drained = (await http.post(f"{JOB}/workers/rollout-0/drain", params={"timeout": 5})).json()
    TypeAdapter(WorkerObject).validate_python(drained)
    assert drained["status"] == "draining"
    ledger = Ledger(served.redis, "ftjob-1")
    assert (await ledger.admit("rollout-0", 0, 1, 60.0)).refusal is Refusal.DRAINED
    assert (await ledger.admit("rollout-1", 0, 1, 60.0)).leases
    request = await WorkerDrains(served.redis, "ftjob-1").of("rollout-0")
    assert request is not None
    assert request.until - request.asked_at == pytest.approx(5)
    await served.jobs.record_heartbeat("ftjob-1", beat("rollout-0", "drained"))
    assert (await http.post(f"{JOB}/workers/rollout-0/drain")).json()["status"] == "drained"  # asked again: no change

    assert (await http.post(f"{JOB}/workers/rollout-0/undrain")).json()["status"] == "running"
    assert (await ledger.admit("rollout-0", 0, 1, 60.0)).leases
    told_of_it = [m for m in await told(served.jobs) if m.startswith("rollout-0")]
    assert told_of_it == ["rollout-0 is being drained, by local"] * 2 + ["rollout-0 takes work again, by local"]


async def test_a_silent_worker_is_lost_and_the_learner_is_not_drained(served: Served, http: httpx.AsyncClient) -> None:
    await served.jobs.record_heartbeat("ftjob-1", beat("rollout-0", ago=60))
    (lost,) = [w for w in (await http.get(f"{JOB}/workers")).json()["data"] if w["id"] == "rollout-0"]
    assert lost["status"] == "lost"
    assert (await http.post(f"{JOB}/workers/learner/drain")).status_code == 400
    assert (await http.post(f"{JOB}/workers/rollout-9/drain")).status_code == 404
    assert (await http.post(f"{JOB}/workers/rollout-9/undrain")).status_code == 404


async def test_queues(http: httpx.AsyncClient) -> None:
    found = (await http.get(f"{JOB}/queues")).json()
    TypeAdapter(QueuesObject).validate_python(found)
    assert [(s["stage"], s["depth"], s["oldest_versions"]) for s in found["stages"]] == [
        ("leased", 3, 0), ("queued", 0, None), ("claimed", 0, None)
    ]  # fmt: skip
    assert 0 <= found["stages"][0]["oldest_seconds"] < 60
    assert found["stages"][1]["oldest_seconds"] is None
    assert found["window"] == {"used": 3, "limit": 12}
    await http.patch(f"{JOB}/settings", json={"max_staleness": 0})
    assert (await http.get(f"{JOB}/queues")).json()["window"] == {"used": 3, "limit": 4}


async def test_weights(served: Served, http: httpx.AsyncClient) -> None:
    await served.jobs.record_heartbeat("ftjob-1", beat("rollout-0"))
    publications = Publications(served.redis, "ftjob-1")
    for version in (1, 2):
        await publications.add(Published(version, f"v{version}", served.data_dir, 1000 * version, 0.5))
        await served.jobs.record("ftjob-1", UpdateMetrics(
            worker="rollout-0", time=1.0, version=version, staged_seconds=0.3, paused_seconds=0.01, requests_in_flight=2
        ))  # fmt: skip
    found = (await http.get(f"{JOB}/weights")).json()
    TypeAdapter(WeightsObject).validate_python(found)
    assert [(p["version"], p["bytes"]) for p in found["published"]] == [(2, 2000), (1, 1000)]
    (holder,) = found["workers"]
    assert (holder["worker"], holder["version"]) == ("rollout-0", 1)
    assert [u["version"] for u in holder["updates"]] == [2, 1]
    assert holder["updates"][0]["paused_seconds"] == 0.01
