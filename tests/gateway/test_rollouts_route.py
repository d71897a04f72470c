"""GET …/rollouts over a real gateway and Redis: text, figures, pages, filters, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from headrace_core.jobs.rollout_records import Rollout, RolloutStore
from headrace_gateway.routes.rollouts import MAX_PAGE_TOKENS
from headrace_gateway.schemas.rollouts import RolloutList
from headrace_gateway.views import rollouts as rollout_objects
from headrace_lab.services.jobs import stored_job

from .conftest import Served
from .kept_groups import END, MODEL_FOLDER, completion, environment_token, group

JOB = "ftjob-1"
PLENTY = 100_000_000


async def keep(served: Served, *rollouts: Rollout, **job: Any) -> None:
    await served.jobs.create(stored_job(JOB, **{"model_path": str(MODEL_FOLDER), **job}))
    await RolloutStore(served.redis, JOB).add(rollouts, PLENTY)


async def answered(served: Served, query: str = "", status: int = 200, job: str = JOB) -> Any:
    async with httpx.AsyncClient(timeout=30) as client:
        found = await client.get(f"{served.url}/v1/fine_tuning/jobs/{job}/rollouts{query}")
    assert found.status_code == status, found.text
    body = json.loads(found.text, parse_constant=pytest.fail)
    return TypeAdapter(RolloutList).validate_python(body) and body if status == 200 else body["error"]


async def ids(served: Served, query: str = "") -> tuple[list[str], bool]:
    page = await answered(served, query)
    found = [g["id"] for g in page["data"]]
    assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
    return found, page["has_more"]


async def test_a_group_is_shown_with_every_token_in_words(served: Served) -> None:
    old = completion(f"héllo 93{END}", step=7, oldest=6, bound=4)
    mute = environment_token(completion("94", step=7, reward=None))
    await keep(served, group(7, 26, [old, mute]))
    (shown,) = (await answered(served))["data"]
    assert shown["object"] == "fine_tuning.job.rollout"
    assert (shown["id"], shown["group"], shown["step"], shown["version"], shown["row"]) == ("7-26", 26, 7, 6, 2)
    assert (shown["prompt"], shown["group_size"]) == ("What is 37 + 56?", 2)
    first, second = shown["completions"]
    assert first["text"] == "".join(first["tokens"]) == f"héllo 93{END}"
    lists = ("tokens", "token_ids", "versions", "ages", "logprobs", "importance_weights", "masked", "left_out")
    assert {len(first[name]) for name in lists} == {len(first["tokens"])}
    assert [6 - v for v in first["versions"]] == first["ages"]
    assert first["ages"] == sorted(first["ages"], reverse=True)
    assert (max(first["ages"]), min(first["ages"])) == (6, 0)
    too_old = [age > 4 for age in first["ages"]]
    assert first["masked"] == too_old
    assert first["left_out"] == ["too_old" if old else None for old in too_old]
    assert [w is None for w in first["importance_weights"]] == too_old
    assert first["finish_reason"] == "stop"
    assert (first["reward"], first["components"], first["advantage"]) == (1.0, {"exact": 1.0, "brief": 0.25}, 0.5)
    assert first["notes"] == {"said": f"<b>{first['text'][:20]}"}
    assert second["reward"] is None
    assert (second["versions"][0], second["ages"][0], second["logprobs"][0]) == (None, None, None)
    assert second["left_out"] == ["not_sampled", *["no_reward"] * (len(second["tokens"]) - 1)]


async def test_pages_filters_and_order(served: Served) -> None:
    made = [(1, 0), (1, 3), (2, 1), (2, 2), (10, 4)]
    await keep(served, *(group(s, g, [completion("93", s)]) for s, g in made))
    assert await ids(served) == (["10-4", "2-2", "2-1", "1-3", "1-0"], False)
    assert await ids(served, "?limit=2") == (["10-4", "2-2"], True)
    assert await ids(served, "?limit=2&after=2-2") == (["2-1", "1-3"], True)
    assert await ids(served, "?limit=2&after=1-3") == (["1-0"], False)
    assert await ids(served, "?order=asc&limit=3&after=1-0") == (["1-3", "2-1", "2-2"], True)
    assert await ids(served, "?step=2&limit=1") == (["2-2"], True)
    assert await ids(served, "?step=2&after=2-2") == (["2-1"], False)
    assert await ids(served, "?step=3") == ([], False)
    assert await ids(served, "?group=3") == (["1-3"], False)
    assert await ids(served, "?group=3&step=2") == ([], False)
    assert await ids(served, "?group=3&after=1-3") == ([], False)
    assert await ids(served, "?group=3&after=2-1") == (["1-3"], False)
    assert await ids(served, "?group=77") == ([], False)


async def test_a_page_of_long_completions_ends_early(served: Served) -> None:
    long = completion("9" * (MAX_PAGE_TOKENS // 2 + 1), 1)
    await keep(served, *(group(1, g, [long]) for g in range(3)))
    assert await ids(served, "?limit=3") == (["1-2", "1-1"], True)
    assert await ids(served, "?limit=3&after=1-1") == (["1-0"], False)


async def test_a_job_that_kept_nothing_has_an_empty_page(served: Served) -> None:
    await keep(served, model_path="/gone")
    assert await ids(served) == ([], False)


async def test_a_model_folder_that_is_gone_is_named(served: Served) -> None:
    await keep(served, group(1, 0, [completion("93", 1)]), model_path="/gone")
    error = await answered(served, status=400)
    assert "/gone holds no tokenizer.json" in error["message"]


@pytest.mark.parametrize(
    "query",
    [
        *("?limit=0", "?limit=51", "?step=-1", "?step=1000000000001", "?group=x", "?order=up"),
        *("?after=", "?after=1", "?after=1-2-3", "?after=1-%00", "?after=1-1234567890123456", "?after=%D9%A1-1"),
    ],
)
async def test_parameters_out_of_bounds_are_refused_by_name(served: Served, query: str) -> None:
    await keep(served)
    error = await answered(served, query, status=400)
    assert error["param"] == query[1:].partition("=")[0]


async def test_a_job_that_is_not_there_is_not_found(served: Served) -> None:
    await answered(served, status=404, job="ftjob-none")


async def test_the_gateway_answers_others_while_it_writes_a_page(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are found in a thread: here, one that waits until another request was answered."""
    begun, answered_meanwhile, waited = threading.Event(), threading.Event(), list[bool]()

    def slow(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
        begun.set()
        waited.append(answered_meanwhile.wait(timeout=10))
        return [""] * len(tokens)

    monkeypatch.setattr(rollout_objects, "spelled", slow)
    await keep(served, group(1, 0, [completion("93", 1)]))
    page = asyncio.create_task(answered(served))
    assert await asyncio.to_thread(begun.wait, 10)
    async with httpx.AsyncClient(timeout=5) as client:
        assert (await client.get(f"{served.url}/healthz")).status_code == 200
    answered_meanwhile.set()
    await page
    assert waited
    assert all(waited)
