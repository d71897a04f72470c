"""The audit log: every change and every refusal, by whom, and nothing that is secret."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core import keys
from headrace_gateway.audit import Audit, Entry

from .conftest import Served, body, rows
from .keyed import Keyed, keyed
from .test_envelope import error_of

__all__ = ["keyed"]

UPLOAD = {"files": {"file": ("a.jsonl", rows(8))}, "data": {"purpose": "fine-tune"}}


async def log(http: httpx.AsyncClient, which: str = "changes", **params: Any) -> list[dict[str, Any]]:
    answer = await http.get("/v1/headrace/audit", params={"log": which, **params})
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_who_did_what(keyed: Keyed) -> None:
    async with keyed.http(keyed.alice) as alice, keyed.http(keyed.admin) as admin:
        uploaded = await alice.post("/v1/files?secret=hr-in-a-query", **UPLOAD)
        made = await alice.post("/v1/fine_tuning/jobs", json=body(uploaded.json()["id"]))
        job = f"/v1/fine_tuning/jobs/{made.json()['id']}"
        await alice.get(job)
        await admin.post(f"{job}/cancel")
        entries = await log(admin)
        assert [(e["by"], e["method"], e["path"], e["status"]) for e in entries] == [
            ("root", "POST", f"{job}/cancel", 200),
            ("alice", "POST", "/v1/fine_tuning/jobs", 200),
            ("alice", "POST", "/v1/files", 200),
        ]
        assert [e["made"] for e in entries] == [None, made.json()["id"], uploaded.json()["id"]]
        assert entries[1]["request_id"] == made.headers["x-request-id"]
        assert entries[1]["address"] == "127.0.0.1"
        assert entries[1]["scope"] == "user"
        assert "hr-" not in str(entries)
        assert await log(admin, "refusals") == []


async def test_what_was_refused(keyed: Keyed) -> None:
    async with keyed.http(keyed.alice) as alice, keyed.http(keyed.admin) as admin, keyed.http() as nobody:
        await nobody.get("/v1/models")
        await nobody.get("/jobs/ftjob-1")  # a browser that has to log in first is not refused
        await nobody.post("/login", data={"key": "hr-wrong"})
        await alice.get("/v1/headrace/keys")
        await alice.post("/v1/fine_tuning/jobs", json=body("file-none"))
        await alice.post("/v1/fine_tuning/jobs/ftjob-of-another/cancel")
        entries = await log(admin, "refusals")
        assert [(e["by"], e["method"], e["path"], e["status"]) for e in entries] == [
            ("alice", "POST", "/v1/fine_tuning/jobs/ftjob-of-another/cancel", 404),
            ("alice", "POST", "/v1/fine_tuning/jobs", 400),
            ("alice", "GET", "/v1/headrace/keys", 403),
            ("", "POST", "/login", 401),
            ("", "GET", "/v1/models", 401),
        ]
        assert [e["scope"] for e in entries] == ["user", "user", "user", "", ""]
        assert "hr-" not in str(entries)
        assert await log(admin) == []


async def test_a_login_is_a_change_by_the_keys_holder(keyed: Keyed) -> None:
    async with keyed.http() as browser, keyed.http(keyed.admin) as admin:
        await browser.post("/login", data={"key": keyed.alice})
        [entry] = await log(admin)
        assert (entry["by"], entry["path"], entry["status"]) == ("alice", "/login", 303)


async def test_it_is_paged_newest_first(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        made = [(await http.post("/v1/files", **UPLOAD)).json()["id"] for _ in range(5)]
        first = await http.get("/v1/headrace/audit", params={"limit": 2})
        assert first.json()["has_more"]
        found = [e["made"] for e in first.json()["data"]]
        rest = await http.get("/v1/headrace/audit", params={"limit": 9, "after": first.json()["data"][-1]["id"]})
        assert not rest.json()["has_more"]
        assert found + [e["made"] for e in rest.json()["data"]] == made[::-1]
        assert {e["by"] for e in rest.json()["data"]} == {"local"}
        none = await http.get("/v1/headrace/audit", params={"after": "1-0"})
        assert none.json() == {"object": "list", "data": [], "has_more": False}
        for wrong in (
            {"after": "x"},
            {"after": "1-1-1"},
            {"after": "0-0"},
            {"after": "١-١"},
            {"after": "9" * 20 + "-1"},
            {"limit": 0},
            {"log": "all"},
        ):
            error_of(await http.get("/v1/headrace/audit", params=wrong), 400)


async def test_a_long_path_is_cut(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        await http.post("/v1/" + "x" * 2000)
        [entry] = await log(http, "refusals")
        assert len(entry["path"]) == 512


async def test_it_is_bounded_and_refusals_push_out_no_change(redis: Redis) -> None:
    audit = Audit(redis, 100)
    shared: dict[str, Any] = {"time": 1.0, "key_id": "k", "scope": "user", "address": "a", "method": "POST"}
    entry = {**shared, "by": "alice", "path": "/", "made": None, "request_id": "r"}
    await audit.write(Entry(**entry, status=200))
    for _ in range(1000):
        await audit.write(Entry(**entry, status=404))
    assert await redis.xlen(keys.audit("changes")) == 1
    assert 100 <= await redis.xlen(keys.audit("refusals")) < 300


@pytest.mark.parametrize("path", ["/v1/files", "/v1/nowhere"])
async def test_a_change_is_written_down_before_it_is_answered(keyed: Keyed, path: str) -> None:
    """What the log cannot take is not answered as done: here the log's key holds something that is no stream."""
    await keyed.redis.set(keys.audit("changes"), "x")
    await keyed.redis.set(keys.audit("refusals"), "x")
    async with keyed.http(keyed.alice) as http:
        error_of(await http.post(path, **UPLOAD), 500)
        assert (await http.get("/v1/models")).status_code == 200
