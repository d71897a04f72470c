"""Pages of a job's events and measurements: any of them costs what it shows, and all together are everything, once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI
from pydantic import TypeAdapter

from headrace_core.jobs.history import MEASURED
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Admission
from headrace_core.types.events import StepSummary
from headrace_core.types.staleness import Limits
from headrace_gateway.schemas.observe import (
    GroupObject,
    LedgerObject,
    Measured,
    MeasurementList,
    RewardObject,
    StalenessObject,
)
from headrace_lab.services.jobs import stored_job

from .conftest import Served
from .test_observe import UPDATE, WORKER, step

JOB = "ftjob-1"
PATH = f"/v1/fine_tuning/jobs/{JOB}"
STEPS = 30


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client, and a job of 30 steps, each with an event and an update, every tenth with a heartbeat."""
    await served.jobs.create(stored_job())
    for number in range(1, STEPS + 1):
        await served.jobs.record(JOB, step(number))
        await served.jobs.emit_event(JOB, f"Step {number}", type="metrics", data=StepSummary.of(step(number), 5))
        await served.jobs.record(JOB, replace(UPDATE, version=number))
        if number % 10 == 0:
            await served.jobs.record_heartbeat(JOB, replace(WORKER, time=float(number)))
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        yield client


async def all_pages(http: httpx.AsyncClient, path: str, **params: str | int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    more = True
    while more:
        page = (await http.get(path, params=params | ({"after": str(found[-1]["id"])} if found else {}))).json()
        assert len(page["data"]) <= int(params["limit"])
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        found += page["data"]
        more = page["has_more"]
    return found


@pytest.mark.parametrize("limit", [1, 7, 93, 1000])
async def test_pages_of_measurements_are_everything_once(http: httpx.AsyncClient, limit: int) -> None:
    found = await all_pages(http, f"{PATH}/metrics", limit=limit)
    kinds = [m["kind"] for m in found]
    assert [kinds.count(kind) for kind in ("step", "update", "worker")] == [STEPS, STEPS, STEPS // 10]
    assert len(kinds) == 2 * STEPS + STEPS // 10
    ids = [int(str(m["id"])) for m in found]
    assert ids == sorted(set(ids))


async def test_measurements_of_a_kind_and_from_a_step_on(http: httpx.AsyncClient) -> None:
    steps = await all_pages(http, f"{PATH}/metrics", kind="step", from_step=21, limit=4)
    assert [m["data"]["step"] for m in steps] == list(range(21, 31))  # type: ignore[index]
    later = (await http.get(f"{PATH}/metrics", params={"from_step": 29})).json()
    assert [m["kind"] for m in later["data"]] == ["step", "update", "step", "update", "worker"]
    TypeAdapter(MeasurementList).validate_python(later)
    nothing = (await http.get(f"{PATH}/metrics", params={"from_step": STEPS + 1})).json()
    assert (nothing["data"], nothing["has_more"], nothing["last_id"]) == ([], False, None)
    both = (
        await http.get(f"{PATH}/metrics", params={"from_step": 2, "after": str(steps[-1]["id"]), "kind": "step"})
    ).json()
    assert both["data"] == []  # whichever is later


async def test_events_page_backwards_as_openais_client_asks(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    told = [event.message async for event in client.fine_tuning.jobs.list_events(JOB, limit=7)]
    assert told == [f"Step {n}" for n in range(STEPS, 0, -1)]
    page = await client.fine_tuning.jobs.list_events(JOB, limit=1)
    assert page.data[0].id == f"ftevent-1-{3 * STEPS - 1 + 2}"  # its place in the history: two heartbeats came before


async def test_staleness_is_paged_by_step(http: httpx.AsyncClient) -> None:
    first = (await http.get(f"{PATH}/staleness", params={"limit": 20})).json()
    TypeAdapter(StalenessObject).validate_python(first)
    assert ([s["step"] for s in first["steps"]], first["has_more"]) == (list(range(1, 21)), True)
    rest = (await http.get(f"{PATH}/staleness", params={"from_step": first["steps"][-1]["step"] + 1})).json()
    assert ([s["step"] for s in rest["steps"]], rest["has_more"]) == (list(range(21, 31)), False)


async def test_a_page_reads_no_more_than_it_shows(http: httpx.AsyncClient, served: Served) -> None:
    for number in range(STEPS + 1, 500):
        await served.jobs.record(JOB, step(number))
    before = (await served.redis.info("stats"))["total_net_output_bytes"]
    await http.get(f"{PATH}/metrics", params={"from_step": 400, "limit": 5})
    await http.get(f"{PATH}/events", params={"limit": 5})
    sent = (await served.redis.info("stats"))["total_net_output_bytes"] - before
    assert sent < 50_000  # of 400,000 in the history


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("events", {"after": "ftevent-1-x"}),
        ("events", {"after": "ftevent-2-5"}),
        ("events", {"after": "5"}),
        ("events", {"after": "ftevent-1-" + "9" * 40}),
        ("events", {"after": "ftevent-1-٣"}),
        ("metrics", {"after": "-1"}),
        ("metrics", {"after": "1-0"}),
        ("metrics", {"from_step": "-1"}),
        ("metrics", {"from_step": "9" * 30}),
        ("metrics", {"kind": "event"}),
        ("metrics", {"limit": "10001"}),
        ("staleness", {"limit": "0"}),
        ("stream", {"thin": "1"}),
        ("ledger", {"group": "9" * 30}),
        ("ledger/-1", {}),
    ],
)
async def test_what_is_no_place_is_refused(http: httpx.AsyncClient, path: str, params: dict[str, str]) -> None:
    response = await http.get(f"{PATH}/{path}", params=params)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("last", ["ftevent-2-5", "ftevent-1-", "x", "1/1", "9" * 300])
async def test_a_stream_does_not_go_on_from_no_place(http: httpx.AsyncClient, last: str) -> None:
    for path in ("stream", "events?stream=true"):
        assert (await http.get(f"{PATH}/{path}", headers={"last-event-id": last})).status_code == 400


async def test_answers_are_as_the_document_says(http: httpx.AsyncClient, served: Served) -> None:
    """They are made by msgspec: nothing else holds them to the models."""
    lease = (await _opened(served)).leases[0]
    TypeAdapter(LedgerObject).validate_python((await http.get(f"{PATH}/ledger")).json())
    TypeAdapter(GroupObject).validate_python((await http.get(f"{PATH}/ledger/{lease.group_id}")).json())
    TypeAdapter(RewardObject).validate_python((await http.get(f"{PATH}/reward")).json())
    assert set(MEASURED) == set(Measured.__args__)  # type: ignore[attr-defined]


async def _opened(served: Served) -> Admission:
    ledger = Ledger(served.redis, JOB)
    await ledger.open(Limits(batch_size=1, max_staleness=2, total_groups=10))
    return await ledger.admit("rollout-0", 0, 1, 60.0)
