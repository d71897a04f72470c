"""The audit log: every change and every refusal, by whom, and nothing that is secret."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

import headrace_gateway.auth.audit_log
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.types.job import Job
from headrace_gateway.auth.audit_log import Audit, AuditEntry

from .conftest import Served, body, rows, upload
from .keyed import Keyed, keyed
from .test_envelope import error_of

__all__ = ["keyed"]

UPLOAD = upload(rows(8))


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
        ]
        strangers = await log(admin, "unauthenticated")
        assert [(e["by"], e["method"], e["path"], e["status"]) for e in strangers] == [
            ("", "POST", "/login", 401),
            ("", "GET", "/v1/models", 401),
        ]
        assert [e["scope"] for e in entries + strangers] == ["user", "user", "user", "", ""]
        assert "hr-" not in str(entries + strangers)
        assert await log(admin) == []


async def test_a_login_is_a_change_by_the_keys_holder(keyed: Keyed) -> None:
    async with keyed.http() as browser, keyed.http(keyed.admin) as admin:
        await browser.post("/login", data={"key": keyed.alice})
        [entry] = await log(admin)
        assert (entry["by"], entry["path"], entry["status"]) == ("alice", "/login", 303)


async def test_what_changed_nothing_is_no_change(keyed: Keyed) -> None:
    """Who has no key, or repeats themself, pushes nothing out of the log."""
    async with keyed.http(keyed.alice) as alice, keyed.http() as nobody, keyed.http(keyed.admin) as admin:
        for _ in range(3):
            assert (await nobody.post("/logout")).status_code == 303
            assert (await nobody.post("/logout", headers={"cookie": "headrace_session=none"})).status_code in (303, 403)
        uploaded = (await alice.post("/v1/files", **UPLOAD)).json()["id"]
        named = {"idempotency-key": "k"}
        made = [await alice.post("/v1/fine_tuning/jobs", json=body(uploaded), headers=named) for _ in range(2)]
        job = f"/v1/fine_tuning/jobs/{made[0].json()['id']}"
        assert made[1].json()["id"] == made[0].json()["id"]
        for _ in range(2):
            await alice.post(f"{job}/cancel")
        grader = body(uploaded)["method"]["reinforcement"]["grader"]
        assert (await alice.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})).status_code == 200
        new = (await admin.post("/v1/headrace/keys", json={"name": "carol"})).json()["id"]
        for _ in range(2):
            assert (await admin.delete(f"/v1/headrace/keys/{new}")).status_code == 200
        assert [(e["by"], e["method"], e["path"]) for e in await log(admin)] == [
            ("root", "DELETE", f"/v1/headrace/keys/{new}"),
            ("root", "POST", "/v1/headrace/keys"),
            ("alice", "POST", f"{job}/cancel"),
            ("alice", "POST", "/v1/fine_tuning/jobs"),
            ("alice", "POST", "/v1/files"),
        ]
        assert await keyed.redis.hlen(keys.audit("begun")) == 0


async def test_a_logout_that_ends_a_session_is_its_holders(keyed: Keyed) -> None:
    async with keyed.http() as browser, keyed.http(keyed.admin) as admin:
        await browser.post("/login", data={"key": keyed.alice})
        assert (await browser.post("/logout", headers={"origin": keyed.url})).status_code == 303
        assert [(e["by"], e["path"]) for e in await log(admin)] == [("alice", "/logout"), ("alice", "/login")]


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
    shared: dict[str, Any] = {"time": 1.0, "scope": "user", "address": "a", "method": "POST"}
    entry = {**shared, "by": "alice", "path": "/", "made": None, "request_id": "r"}
    await audit.write(AuditEntry(**entry, key_id="k", status=200))
    await audit.write(AuditEntry(**entry, key_id="k", status=403))
    for _ in range(1000):
        await audit.write(AuditEntry(**entry, key_id="", status=401))
    assert await redis.xlen(keys.audit("changes")) == await redis.xlen(keys.audit("refusals")) == 1
    assert 100 <= await redis.xlen(keys.audit("unauthenticated")) < 300
    for _ in range(1000):
        await audit.write(AuditEntry(**entry, key_id="k", status=404))
    assert await redis.xlen(keys.audit("changes")) == 1
    assert 100 <= await redis.xlen(keys.audit("refusals")) < 300


@pytest.fixture
async def full(redis: Redis) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Have Redis take no more; afterwards it does again."""

    async def fill() -> None:
        await redis.config_set("maxmemory", "1")

    yield fill
    await redis.config_set("maxmemory", "0")


async def test_what_cannot_be_written_down_is_not_done(served: Served, full: Callable[[], Awaitable[None]]) -> None:
    named = {"idempotency-key": "k"}
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        uploaded = (await http.post("/v1/files", **UPLOAD)).json()["id"]
        await full()
        refused = await http.post("/v1/fine_tuning/jobs", json=body(uploaded), headers=named)
        assert error_of(refused, 503)["code"] in ("redis_full", "unavailable")
        assert (await http.get("/v1/models")).status_code == 200
        await served.redis.config_set("maxmemory", "0")
        assert (await http.get("/v1/fine_tuning/jobs")).json()["data"] == []
        made = await http.post("/v1/fine_tuning/jobs", json=body(uploaded), headers=named)
        assert [job["id"] for job in (await http.get("/v1/fine_tuning/jobs")).json()["data"]] == [made.json()["id"]]


async def test_what_was_done_is_answered_so_whatever_fails_then(
    keyed: Keyed, full: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is full from the moment on at which the job is stored: it will run, so it is answered."""
    create = JobStore.create

    async def create_and_fill(self: JobStore, job: Job) -> bool:
        created = await create(self, job)
        await full()
        return created

    monkeypatch.setattr(JobStore, "create", create_and_fill)
    async with keyed.http(keyed.alice) as http, keyed.http(keyed.admin) as admin:
        uploaded = (await http.post("/v1/files", **UPLOAD)).json()["id"]
        made = await http.post("/v1/fine_tuning/jobs", json=body(uploaded))
        assert made.status_code == 200, made.text
        await keyed.redis.config_set("maxmemory", "0")
        assert [job["id"] for job in (await http.get("/v1/fine_tuning/jobs")).json()["data"]] == [made.json()["id"]]
        assert [entry["path"] for entry in await log(admin)] == ["/v1/files"]
        monkeypatch.setattr(headrace_gateway.auth.audit_log, "ABANDONED_SECONDS", -1.0)
        await keyed.app.state.gateway.audit.close_abandoned()
        [settled, _] = await log(admin)
        assert (settled["by"], settled["path"], settled["status"]) == ("alice", "/v1/fine_tuning/jobs", 0)
        assert settled["request_id"] == made.headers["x-request-id"]
        assert await keyed.redis.hlen(keys.audit("begun")) == 0
