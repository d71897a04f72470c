"""A browser shows its key once, gets a session, and changes things from our own pages only."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.redis_access import keys
from headrace_gateway.auth import api_keys
from headrace_gateway.service.embedded_redis import RedisServer

from .conftest import upload
from .keyed import Keyed, gateway, keyed
from .test_envelope import error_of

__all__ = ["keyed"]

UPLOAD = upload(b"x")


async def log_in(http: httpx.AsyncClient, key: str, next: str = "/") -> httpx.Response:
    return await http.post("/login", data={"key": key, "next": next})


async def test_from_a_page_to_the_form_and_back(keyed: Keyed) -> None:
    async with keyed.http() as http:
        compared = await http.get("/compare?jobs=a%2Cb&x=1")
        assert compared.headers["location"] == "/login?next=/compare%3Fjobs%3Da%252Cb%26x%3D1"
        form = await http.get(compared.headers["location"])
        assert 'value="/compare?jobs=a%2Cb&amp;x=1"' in form.text
        sent_away = await http.get("/jobs/ftjob-1")
        assert (sent_away.status_code, sent_away.headers["location"]) == (303, "/login?next=/jobs/ftjob-1")
        form = await http.get(sent_away.headers["location"])
        assert (form.status_code, form.headers["cache-control"]) == (200, "no-store")
        assert 'name="next" type="hidden" value="/jobs/ftjob-1"' in form.text
        assert not re.findall(r"(?:src|href|action)=\"(?!/)", form.text), "the page asks another host"
        assert "<script" not in form.text

        wrong = await log_in(http, "hr-wrong", "/jobs/ftjob-1")
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        assert "this is no API key of this gateway" in wrong.text

        right = await log_in(http, f" {keyed.alice}\n", "/jobs/ftjob-1")
        assert (right.status_code, right.headers["location"]) == (303, "/jobs/ftjob-1")
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert f"max-age={api_keys.SESSION_SECONDS}" in cookie
        assert "secure" not in cookie  # this is http
        assert (await http.get("/jobs/ftjob-1")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 200
        assert error_of(await http.get("/v1/headrace/keys"), 403)["code"] == "forbidden"
        assert "logged in as <b>alice</b>" in (await http.get("/login")).text

        token = http.cookies["headrace_session"]
        assert (await http.post("/logout", headers={"origin": keyed.url})).headers["location"] == "/login"
        assert "headrace_session" not in http.cookies
        error_of(await http.get("/v1/models", headers={"cookie": f"headrace_session={token}"}), 401)


async def test_https_makes_the_cookie_secure(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, require_keys="on", trusted_proxies=("127.0.0.1",))
    told = {"x-forwarded-proto": "https", "x-forwarded-for": "10.9.8.7"}
    async with gateway(settings, redis, redis_server.url) as behind, behind.http(headers=told) as http:
        assert "Secure" in (await log_in(http, behind.alice)).headers["set-cookie"]
        assert await addresses(behind) == ["10.9.8.7"]


async def test_nobody_says_for_whom_he_asks_unless_he_is_trusted(keyed: Keyed) -> None:
    """Every process of this machine could: it would be counted, and written down, as whoever it likes."""
    async with keyed.http(headers={"x-forwarded-proto": "https", "x-forwarded-for": "10.9.8.7"}) as http:
        assert "Secure" not in (await log_in(http, keyed.alice)).headers["set-cookie"]
        assert await addresses(keyed) == ["127.0.0.1"]


async def addresses(keyed: Keyed) -> list[str]:
    """From where the audit log says that changes came."""
    async with keyed.http(keyed.admin) as admin:
        return [entry["address"] for entry in (await admin.get("/v1/headrace/audit")).json()["data"]]


async def test_a_session_is_kept_as_a_sum_and_expires(keyed: Keyed) -> None:
    async with keyed.http() as http:
        await log_in(http, keyed.alice)
        token = http.cookies["headrace_session"]
        [name] = [n.decode() async for n in keyed.redis.scan_iter(f"{keys.session('*')}")]
        assert name == keys.session(api_keys.digest(token))
        assert api_keys.SESSION_SECONDS - 60 < await keyed.redis.ttl(name) <= api_keys.SESSION_SECONDS
        await keyed.redis.expire(name, 0)
        error_of(await http.get("/v1/models"), 401)


async def test_a_session_ends_with_its_key(keyed: Keyed) -> None:
    key, secret = await keyed.keys.create("carol", "user")
    async with keyed.http() as http:
        await log_in(http, secret)
        assert (await http.get("/v1/models")).status_code == 200
        await keyed.keys.revoke(key.id)
        assert "revoked" in error_of(await http.get("/v1/models"), 401)["message"]
        assert "revoked" in (await log_in(http, secret)).text


async def test_what_a_cookie_may_change_and_from_where(keyed: Keyed) -> None:
    async with keyed.http() as http:
        await log_in(http, keyed.alice)
        for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": f"{keyed.url}0"}):
            refused = await http.post("/v1/files", headers=headers, **UPLOAD)
            assert error_of(refused, 403)["code"] == "foreign_origin"
        assert (await http.get("/v1/files")).json()["data"] == []
        assert (await http.post("/v1/files", headers={"origin": keyed.url}, **UPLOAD)).status_code == 200
        behind_a_proxy = {"origin": "https://headrace.example", "sec-fetch-site": "same-origin"}
        assert (await http.post("/v1/files", headers=behind_a_proxy, **UPLOAD)).status_code == 200
    async with keyed.http(keyed.alice) as script:  # a key that is shown is no cookie that a browser adds by itself
        assert (await script.post("/v1/files", **UPLOAD)).status_code == 200


async def test_no_other_site_logs_a_browser_in_or_out(keyed: Keyed) -> None:
    async with keyed.http(headers={"origin": "http://evil.example"}) as http:
        error_of(await log_in(http, keyed.alice), 403)
        error_of(await http.post("/logout"), 403)


@pytest.mark.parametrize(
    "next", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:1", "/\r\nx"]
)
async def test_the_login_leads_nowhere_else(keyed: Keyed, next: str) -> None:
    async with keyed.http() as http:
        assert (await log_in(http, keyed.alice, next)).headers["location"] == "/"
        assert 'href="/"' in (await http.get("/login", params={"next": next})).text


async def test_what_a_form_is_given_becomes_no_markup(keyed: Keyed) -> None:
    async with keyed.http() as http:
        page = (await http.get("/login", params={"next": '/"><script>'})).text
        assert "<script>" not in page
