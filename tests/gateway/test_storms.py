"""Twenty requests at once to one job, again and again: every answer is one that its caller understands, and the job is
in a state that the last of them could have left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import httpx
import pytest
from openai import AsyncOpenAI

from headrace_core.jobs.job_store import ENDED

from .conftest import Served, body

ROUNDS, AT_ONCE = 4, 20


async def storm(url: str, job_id: str, kinds: list[str], seed: int) -> Counter[tuple[str, int]]:
    """Number of answers by kind of request and status."""
    rng, seen = random.Random(seed), Counter[tuple[str, int]]()
    job = f"/v1/fine_tuning/jobs/{job_id}"

    async def ask(kind: str) -> None:
        if kind == "set":
            changed = {"max_staleness": rng.randint(0, 4), "group_size": rng.choice([2, 4, 8])}
            answer = await client.patch(f"{job}/settings", json=changed)
        elif kind == "show":
            answer = await client.get(job)
        else:
            answer = await client.post(f"{job}/{kind}")
        assert answer.status_code in (200, 400), (kind, answer.status_code, answer.text)
        assert answer.is_success or answer.json()["error"]["code"] == "invalid_state"
        seen[kind, answer.status_code] += 1

    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        for _ in range(ROUNDS):
            await asyncio.gather(*(ask(rng.choice(kinds)) for _ in range(AT_ONCE)))
    return seen


@pytest.mark.parametrize("seed", range(2))
async def test_a_storm_of_pauses_resumes_and_settings(
    client: AsyncOpenAI, served: Served, training_file: str, seed: int
) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file))
    await served.jobs.move(job.id, "running")
    seen = await storm(served.url, job.id, ["pause", "resume", "set", "show"], seed)
    assert seen["show", 200] == sum(count for (kind, _), count in seen.items() if kind == "show")
    assert seen["set", 200] == sum(count for (kind, _), count in seen.items() if kind == "set")
    assert (await served.jobs.get(job.id)).status in ("queued", "paused")
    told = Counter([event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=100)])
    assert abs(told["pausing"] - told["Resumed"]) <= 1, "each of them followed one of the other"
    async with httpx.AsyncClient(base_url=served.url) as plain:
        settings = (await plain.get(f"/v1/fine_tuning/jobs/{job.id}/settings")).json()
    in_force = {"max_staleness": 4, "group_size": 8}
    for change in settings["changes"]:
        assert change["before"] == in_force[change["name"]]
        in_force[change["name"]] = change["after"]
    assert {name: settings["settings"][name] for name in in_force} == in_force


async def test_a_storm_in_which_someone_cancels(client: AsyncOpenAI, served: Served, training_file: str) -> None:
    job = await client.fine_tuning.jobs.create(**body(training_file))
    await served.jobs.move(job.id, "running")
    seen = await storm(served.url, job.id, ["pause", "resume", "set", "show", "cancel"], 7)
    assert seen["cancel", 200] == sum(count for (kind, _), count in seen.items() if kind == "cancel")
    stored = await served.jobs.get(job.id)
    assert (stored.status, stored.status in ENDED) == ("cancelled", True)
    events = [event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert events.count("cancelled") == 1
    assert served.controllers.cancelled
