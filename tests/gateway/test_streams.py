"""Event streams: every entry once, in order, for listeners that come, lag, leave and come back at any moment."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core.jobs.history import EVENTS
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.events import StepSummary
from headrace_core.types.job import Status
from headrace_core.types.metrics import UpdateMetrics, WorkerMetrics
from headrace_gateway.events import job_streams as hub_module
from headrace_gateway.events import sse_response
from headrace_gateway.events import subscriber as listener_module
from headrace_gateway.events.job_streams import JobStreams
from headrace_gateway.events.stream_formats import EVERYTHING, OPENAI, downsample
from headrace_lab.services.jobs import stored_job
from headrace_lab.waiting import wait_until_async

from .conftest import Served
from .test_observe import step

JOB = "ftjob-1"
STREAM = f"/v1/fine_tuning/jobs/{JOB}/stream"
EVENT_STREAM = f"/v1/fine_tuning/jobs/{JOB}/events?stream=true"


def update(version: int) -> UpdateMetrics:
    return UpdateMetrics(
        worker="rollout-0", time=1.0, version=version, staged_seconds=0.1, paused_seconds=0.01, requests_in_flight=3
    )


@pytest.fixture
async def jobs(redis: Redis) -> JobStore:
    """One running job."""
    store = JobStore(redis)
    await store.create(stored_job())
    statuses: tuple[Status, ...] = ("queued", "running")
    for status in statuses:
        await store.move(JOB, status)
    return store


@pytest.fixture
async def http(jobs: JobStore, served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=20, limits=httpx.Limits(max_connections=100)) as client:
        yield client


@pytest.fixture
async def hub(redis: Redis) -> AsyncIterator[JobStreams]:
    hub = JobStreams(redis)
    yield hub
    hub.close()


def messages(text: str) -> list[dict[str, str]]:
    """Server-sent events as a client reads them; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append(fields)
    return found


def numbers(found: list[dict[str, str]]) -> list[int]:
    return [int(m["id"].rsplit("-", 1)[-1]) for m in found if "id" in m]


async def read(http: httpx.AsyncClient, path: str, last: str | None = None) -> list[dict[str, str]]:
    """A stream to its end."""
    response = await http.get(path, headers={} if last is None else {"last-event-id": last})
    assert response.headers["content-type"].startswith("text/event-stream")
    return messages(response.text)


@asynccontextmanager
async def open_stream(http: httpx.AsyncClient, path: str) -> AsyncIterator[AsyncIterator[str]]:
    """A stream whose first line has come."""
    async with http.stream("GET", path) as response:
        lines = response.aiter_lines()
        await anext(lines)
        yield lines


async def test_listeners_that_come_at_any_moment_get_every_entry_once(http: httpx.AsyncClient, jobs: JobStore) -> None:
    chance = random.Random(5)
    writers, each = 4, 60

    async def write(name: int) -> None:
        for i in range(each):
            await jobs.emit_event(JOB, f"{name} {i}")
            await jobs.record(JOB, update(name * 1000 + i))
            await asyncio.sleep(chance.random() * 0.02)

    async def listen(path: str, after: int | None, delay: float) -> list[dict[str, str]]:
        await asyncio.sleep(delay)
        return await read(http, path, None if after is None else str(after))

    wanted = [(p, a) for p in (STREAM, EVENT_STREAM) for a in (None, None, None, 0, 7, 100, 10**12)]
    listening = [asyncio.create_task(listen(*w, delay=chance.random())) for w in wanted]
    await asyncio.gather(*(write(name) for name in range(writers)))
    await jobs.move(JOB, "cancelled")
    everything = 2 * writers * each
    told = {e.number for e in await jobs.history.after(JOB, 0, everything, kinds=EVENTS)}
    for (path, after), listener in zip(wanted, listening, strict=True):
        found = await listener
        due = [n for n in range((after or 0) + 1, everything + 1) if path == STREAM or n in told]
        assert numbers(found) == due, (path, after)
        assert found[-1]["data"] == "[DONE]"


async def test_one_reader_serves_all_listeners_and_leaves_with_the_last(hub: JobStreams, jobs: JobStore) -> None:
    streams = [hub.stream_events(JOB, 0, stream_format) for stream_format in (EVERYTHING, OPENAI) * 10]
    firsts = [asyncio.create_task(anext(s)) for s in streams]
    await jobs.emit_event(JOB, "hello")
    await asyncio.wait_for(asyncio.gather(*firsts), 10)
    assert hub.followed == {JOB: 20}
    for stream in streams[1:]:
        await stream.aclose()
    assert hub.followed == {JOB: 1}
    await streams[0].aclose()
    assert hub.followed == {}
    await wait_until_async(
        lambda: not [t for t in asyncio.all_tasks() if t.get_name() == f"follow {JOB}"], "the follower ends"
    )


async def test_a_slow_listener_misses_nothing(hub: JobStreams, jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_WAITING", 2)
    monkeypatch.setattr(hub_module, "_GATHER_SECONDS", 0.0)
    slow, fast = hub.stream_events(JOB, 0, OPENAI), hub.stream_events(JOB, 0, OPENAI)
    received = {slow: "", fast: ""}
    for i in range(30):
        await jobs.emit_event(JOB, f"message {i}")
        while f"message {i}" not in received[fast]:  # so that each is a batch of its own
            received[fast] += (await asyncio.wait_for(anext(fast), 10)).decode()
        if i == 3:
            received[slow] += (await asyncio.wait_for(anext(slow), 10)).decode()
    await jobs.move(JOB, "cancelled")
    for stream in received:
        async for piece in stream:
            received[stream] += piece.decode()
    assert numbers(messages(received[slow])) == numbers(messages(received[fast])) == list(range(1, 31))


async def test_state_is_sent_at_once_and_when_it_changes(http: httpx.AsyncClient, jobs: JobStore) -> None:
    async with open_stream(http, STREAM) as lines:
        seen = [json.loads((await anext(lines)).removeprefix("data: "))["job"]["status"]]
        await jobs.move(JOB, "paused")
        async for line in lines:
            if line.startswith("data: {") and "ledger" in line:
                seen.append(json.loads(line.removeprefix("data: "))["job"]["status"])
                if seen[-1] == "paused":
                    await jobs.move(JOB, "cancelled")
    assert [s for i, s in enumerate(seen) if seen[i - 1 : i] != [s]] == ["running", "paused", "cancelled"]
    assert len(seen) == 3  # none is sent again


async def test_a_quiet_stream_carries_comments(
    http: httpx.AsyncClient, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PING_SECONDS", 0.5)
    await jobs.emit_event(JOB, "hello")
    pings = 0
    async with open_stream(http, EVENT_STREAM) as lines, asyncio.timeout(10):
        async for line in lines:
            pings += line == ": ping"
            if line == ": ping" and pings == 2:
                await jobs.move(JOB, "cancelled")


async def test_what_is_past_is_thinned_and_what_comes_is_not(http: httpx.AsyncClient, jobs: JobStore) -> None:
    for number in range(1, 301):
        await jobs.record(JOB, step(number))
        await jobs.emit_event(JOB, f"Step {number}", type="metrics", data=StepSummary.of(step(number), 5))
        await jobs.record(JOB, update(number))
        if number % 3 == 0:
            await jobs.emit_event(JOB, f"said {number}")
    async with open_stream(http, f"{STREAM}?thin=10") as lines:
        while not (first := await anext(lines)).startswith("id"):  # then the past has been read
            pass
        for number in range(301, 341):
            await jobs.record(JOB, step(number))
        await jobs.move(JOB, "cancelled")
        found = messages("\n".join([first, *[line async for line in lines]]))
    steps = [json.loads(m["data"])["step"] for m in found if m.get("event") == "step"]
    assert steps[10:] == list(range(301, 341))
    assert (steps[0], steps[9]) == (1, 300)
    assert max(b - a for a, b in pairwise(steps)) == 34
    events = [json.loads(m["data"])["message"] for m in found if m.get("event") == "event"]
    assert [e for e in events if e.startswith("said")] == ["said 3", *(f"said {n}" for n in range(276, 301, 3))]
    assert len([e for e in events if e.startswith("Step")]) == 10
    assert [m.get("event") for m in found].count("update") == 10
    assert numbers(found) == sorted(numbers(found))


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
async def test_the_past_ends_with_an_event_of_its_own(http: httpx.AsyncClient, jobs: JobStore, ended: bool) -> None:
    """Where it was thinned, and once: whoever wants the past alone stops there."""
    for number in range(1, 40):
        await jobs.record(JOB, step(number))
    if ended:
        await jobs.move(JOB, "cancelled")
    found: list[str] = []
    async with open_stream(http, f"{STREAM}?thin=10") as lines:
        async for line in lines:
            if line.startswith(("event: step", "event: live", "event: done")):
                found.append(line.removeprefix("event: "))
            if line == "event: live" and not ended:
                await jobs.record(JOB, step(40))
                await jobs.move(JOB, "cancelled")
    assert found == ["step"] * 10 + ["live"] + ["step"] * (not ended) + ["done"]
    assert "live" not in [m.get("event") for m in await read(http, STREAM)]


async def test_thinning_is_by_worker(jobs: JobStore) -> None:
    for time in range(50):
        for worker in ("rollout-0", "rollout-1", "learner")[: 3 if time < 4 else 1]:
            beat = WorkerMetrics(
                worker=worker, role="rollout", time=float(time), version=0, uptime=1, busy=0.5, waiting={}
            )
            await jobs.record(JOB, beat)
    entries = await jobs.history.after(JOB, 0, 1000)
    kept = downsample(entries, 5)
    assert [e.source for e in kept].count("worker rollout-0") == 5
    assert [e.source for e in kept].count("worker learner") == 4
    assert {entries[0], entries[-1]} <= set(kept)
    assert downsample(entries, 1000) == entries


async def test_a_stream_that_breaks_says_so(http: httpx.AsyncClient, jobs: JobStore, redis: Redis) -> None:
    async with open_stream(http, STREAM) as lines:
        await redis.delete(JobKeys(JOB).job)
        found = messages("\n".join([line async for line in lines]))
    assert found[-1]["event"] == "error"
    assert json.loads(found[-1]["data"])["error"]["code"] == "stream_broke"


@pytest.mark.slow
async def test_a_client_that_takes_nothing_is_cut_off(
    served: Served, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse_response, "STUCK_SECONDS", 0.5)
    for _ in range(40):
        await jobs.emit_event(JOB, "x" * 500_000)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stuck:
        stuck.sendall(f"GET {EVENT_STREAM} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        await wait_until_async(lambda: served.hub.followed == {JOB: 1}, "the stream begins")
        await wait_until_async(lambda: served.hub.followed == {}, "the stuck client is cut off")


async def test_a_client_that_goes_is_forgotten(http: httpx.AsyncClient, served: Served) -> None:
    async with open_stream(http, STREAM), open_stream(http, STREAM):
        assert served.hub.followed == {JOB: 2}
    await wait_until_async(lambda: served.hub.followed == {}, "clients that went are forgotten")


async def test_the_server_stops_with_open_streams(served: Served, http: httpx.AsyncClient, jobs: JobStore) -> None:
    await jobs.emit_event(JOB, "hello")
    async with open_stream(http, STREAM) as one, open_stream(http, EVENT_STREAM) as two:
        served.server.should_exit = True
        async with asyncio.timeout(5):
            ends = [[line async for line in lines] for lines in (one, two)]
    assert all(": the server stops" in lines for lines in ends)
    assert not any("[DONE]" in line for lines in ends for line in lines)
