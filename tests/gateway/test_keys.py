"""API keys: who shows none, or one that is not valid, gets nothing; a key is shown once, and kept nowhere."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_gateway.auth import api_keys
from headrace_gateway.events import sse_response
from headrace_lab.services.jobs import stored_job

from .conftest import Served, body, rows, upload
from .keyed import Keyed, gateway, keyed
from .test_envelope import error_of

__all__ = ["keyed"]

OPEN = {"/healthz", "/readyz", "/openapi.json", "/login", "/logout", "/favicon.ico"}


def paths_of(served: Keyed) -> list[tuple[str, str]]:
    """(method, path) of every route that the app has, its parameters filled in."""
    routes = [r for r in served.app.routes if isinstance(r, APIRoute)]
    assert {"/v1/fine_tuning/jobs", "/v1/files", "/metrics", "/"} <= {r.path for r in routes}
    return [(m, re.sub(r"\{[^}]*\}", "1", r.path)) for r in routes for m in sorted(r.methods)]


@pytest.mark.parametrize("shown", ["none", "wrong", "revoked", "expired", "no scheme", "a wrong cookie"])
async def test_no_route_answers_without_a_valid_key(keyed: Keyed, shown: str) -> None:
    revoked, secret = await keyed.keys.create("carol", "admin")
    await keyed.keys.revoke(revoked.id)
    headers = {
        "none": {},
        "wrong": {"authorization": "Bearer hr-" + "x" * 43},
        "revoked": {"authorization": f"Bearer {secret}"},
        "expired": {"authorization": f"Bearer {(await keyed.keys.create('dora', 'admin', -1.0))[1]}"},
        "no scheme": {"authorization": keyed.admin},
        "a wrong cookie": {"cookie": "headrace_session=guessed"},
    }[shown]
    closed = 0
    async with keyed.http() as http:
        for method, path in [*paths_of(keyed), ("GET", "/v1/nowhere"), ("GET", "/anything")]:
            answer = await http.request(method, path, headers=headers)
            if (method, path) == ("POST", "/login"):
                assert (answer.status_code, "headrace_session" in answer.headers.get("set-cookie", "")) == (401, False)
            elif path in OPEN or path.startswith("/dashboard/"):
                assert answer.status_code not in (401, 403), path
            elif path.startswith("/v1") or path == "/metrics" or method not in ("GET", "HEAD"):
                assert error_of(answer, 401)["code"] == "invalid_api_key", path
                assert answer.headers["www-authenticate"].startswith("Bearer")
                closed += 1
            else:
                assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login"), path
    assert closed > 20


async def test_openais_client_with_a_key(keyed: Keyed) -> None:
    async with keyed.openai(keyed.alice) as client:
        file = await client.files.create(file=("a.jsonl", rows(8)), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(**body(file.id))
        assert [j.id async for j in client.fine_tuning.jobs.list()] == [job.id]
    async with keyed.openai("sk-of-another-service") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.fine_tuning.jobs.list()
        assert refused.value.code == "invalid_api_key"


async def test_an_admin_makes_lists_and_revokes_keys(keyed: Keyed) -> None:
    async with keyed.http(keyed.admin) as http:
        made = (await http.post("/v1/headrace/keys", json={"name": "ci", "expires_in": 3600})).json()
        assert re.fullmatch(r"hr-[\w-]{43}", made["key"])
        assert (made["scope"], made["expires_at"] - made["created_at"], made["last_used_at"]) == ("user", 3600, None)
        async with keyed.http(made["key"]) as theirs:
            assert (await theirs.get("/v1/models")).status_code == 200
            listed = (await http.get("/v1/headrace/keys")).json()
            assert [k["name"] for k in listed["data"]] == ["ci", "root", "bob", "alice"]
            assert abs(listed["data"][0]["last_used_at"] - time.time()) < 61
            assert all("key" not in k for k in listed["data"])
            assert made["key"] not in str(listed)
            first = (await http.get("/v1/headrace/keys", params={"limit": 1})).json()
            assert first["has_more"]
            rest = (await http.get("/v1/headrace/keys", params={"after": made["id"]})).json()
            assert [k["name"] for k in rest["data"]] == ["root", "bob", "alice"]
            answer = (await http.delete(f"/v1/headrace/keys/{made['id']}")).json()
            assert answer == {"id": made["id"], "object": "headrace.key", "deleted": True}
            assert "revoked" in error_of(await theirs.get("/v1/models"), 401)["message"]
        assert (await http.get("/v1/headrace/keys")).json()["data"][0]["revoked_at"] is not None
        error_of(await http.delete(f"/v1/headrace/keys/key_{'0' * 24}"), 404)
        error_of(await http.delete("/v1/headrace/keys/nonsense"), 400)


async def test_what_is_for_admins(keyed: Keyed) -> None:
    async with keyed.http(keyed.alice) as http:
        for method, path in [
            ("POST", "/keys"),
            ("GET", "/keys"),
            ("DELETE", f"/keys/key_{'0' * 24}"),
            ("GET", "/audit"),
        ]:
            answer = await http.request(method, f"/v1/headrace{path}", json={"name": "x"})
            assert error_of(answer, 403)["code"] == "forbidden"
        error_of(await http.get("/metrics"), 403)
    async with keyed.http(keyed.admin) as http:
        assert (await http.get("/metrics")).status_code == 200


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "a b"}, {"name": "a", "scope": "root"}, {"name": "a\x00"}])
async def test_keys_that_are_not_made(keyed: Keyed, wrong: dict[str, Any]) -> None:
    async with keyed.http(keyed.admin) as http:
        error_of(await http.post("/v1/headrace/keys", json=wrong), 400)


async def test_a_key_is_kept_nowhere(keyed: Keyed, redis: Redis, capfd: pytest.CaptureFixture[str]) -> None:
    async with keyed.http(keyed.alice) as http:
        await http.post("/v1/files", **upload(b"x"))
        await http.get("/v1/headrace/audit")
        await http.post("/login", data={"key": keyed.alice, "next": "/"})
    kept = [await dump(redis, name) async for name in redis.scan_iter()]
    assert len(kept) > 4
    assert not [text for text in kept if keyed.alice.removeprefix("hr-") in text]
    assert api_keys.digest(keyed.alice) in "".join(kept)
    out, err = capfd.readouterr()
    assert keyed.alice not in out + err


async def dump(redis: Redis, name: bytes) -> str:
    kinds: dict[bytes | str, Any] = {
        b"hash": redis.hgetall, b"string": redis.get, b"stream": redis.xrange, b"zset": lambda n: redis.zrange(n, 0, -1)
    }  # fmt: skip
    return f"{name!r} {await kinds[await redis.type(name)](name)!r}"


async def test_without_keys_everybody_is_the_local_admin(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url, headers={"authorization": "Bearer whatever"}) as http:
        assert (await http.get("/v1/headrace/keys")).json()["data"] == []
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/login")).headers["location"] == "/"
    assert not [name async for name in served.redis.scan_iter("*{access}*")]


@pytest.mark.parametrize(
    ("host", "setting", "required"),
    [
        ("127.0.0.1", "auto", False), ("127.8.9.1", "auto", False), ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True), ("::", "auto", True), ("", "auto", True), ("10.0.0.1", "auto", True),
        ("gpu-box", "auto", True), ("127.0.0.1", "on", True), ("0.0.0.0", "off", False),
    ],
)  # fmt: skip
def test_keys_are_asked_for_wherever_others_can_reach(host: str, setting: Any, required: bool) -> None:
    assert Settings(host=host, require_keys=setting).keys_required is required


async def test_no_page_of_another_name_reaches_a_gateway_without_keys(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        for host in (
            "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80",
            "[::1].evil.example", "[::1]evil.example:80", "[::1", "::1].evil.example", "127.0.0.1:80.evil.example", "",
            ":8000", "[]", "[evil.example]",
        ):  # fmt: skip
            assert error_of(await http.get("/v1/files", headers={"host": host}), 403)["code"] == "unknown_host"
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "10.1.2.3:8000"):
            assert (await http.get("/v1/files", headers={"host": host})).status_code == 200
        for origin in ("http://evil.example", "null", f"{served.url}.evil.example"):
            refused = await http.post("/v1/files", headers={"origin": origin}, **upload(b"x"))
            assert error_of(refused, 403)["code"] == "foreign_origin"
        for told in (
            {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"referer": "http://evil.example/page"},
            {"referer": f"http://evil.example/{served.url}"}, {"origin": "http://evil.example", "referer": served.url},
        ):  # fmt: skip
            refused = await http.post("/v1/files", headers=told, **upload(b"x"))
            assert error_of(refused, 403)["code"] == "foreign_origin", told
        assert (await http.get("/v1/files")).json()["data"] == []
        for ours in ({"origin": served.url}, {"sec-fetch-site": "none"}, {"referer": f"{served.url}/jobs/a"}):
            assert (await http.post("/v1/files", headers=ours, **upload(b"x"))).status_code == 200


async def test_metrics_may_be_open(redis: Redis, redis_server: Any, tmp_path: Any) -> None:
    settings = Settings(data_dir=tmp_path, require_keys="on", open_metrics=True)
    async with gateway(settings, redis, redis_server.url) as served, served.http() as http:
        assert "headrace_jobs" in (await http.get("/metrics")).text
        error_of(await http.get("/v1/models"), 401)


async def test_without_redis_nobody_comes_in(redis: Redis, redis_server: Any, tmp_path: Any) -> None:
    settings = Settings(data_dir=tmp_path, require_keys="on")
    async with gateway(settings, redis, f"unix://{tmp_path}/none") as served, served.http(timeout=30) as http:
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {served.admin}"})
        assert "Redis" in error_of(answer, 503)["message"]
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("how", ["revoked", "expired", "logged out"])
async def test_an_open_stream_ends_soon_after_its_key(
    keyed: Keyed, redis: Redis, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(sse_response, "CHECK_SECONDS", 0.05)
    await JobStore(redis).create(stored_job("ftjob-1", owner="carol", status="running"))
    key, secret = await keyed.keys.create("carol", "user", 1.0 if how == "expired" else None)
    _, token = await keyed.keys.open_session(secret)
    shown = {"cookie": f"headrace_session={token}"} if how == "logged out" else {"authorization": f"Bearer {secret}"}
    async with (
        asyncio.timeout(20),
        keyed.http() as http,
        http.stream("GET", "/v1/fine_tuning/jobs/ftjob-1/stream", headers=shown) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: state"
        if how == "revoked":
            await keyed.keys.revoke(key.id)
        elif how == "logged out":
            await keyed.keys.close_session(token)
        rest = [line async for line in lines]
    assert rest[-3] == "event: error"
    error = json.loads(rest[-2].removeprefix("data: "))["error"]
    assert (error["code"], "ended" in error["message"] or how in error["message"]) == ("invalid_api_key", True)
