"""Errors that nobody foresaw, forced wherever a request with a key can meet one: the log does not hold the key."""

from __future__ import annotations

import pytest

from headrace_core.redis_access import keys
from headrace_core.redis_access.keys import JobKeys
from headrace_lab.services.jobs import stored_job

from .conftest import body, rows, upload
from .keyed import Keyed, keyed
from .test_envelope import error_of

__all__ = ["keyed"]

UPLOAD = upload(rows(8))


async def test_no_log_holds_a_key(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    gateway = keyed.app.state.gateway
    await gateway.jobs.create(stored_job("ftjob-1", owner="alice"))
    tokens = []
    async with keyed.http(keyed.alice) as alice, keyed.http() as browser, keyed.http(keyed.admin) as admin:
        assert (await browser.post("/login", data={"key": keyed.bob})).status_code == 303
        tokens.append(browser.cookies["headrace_session"])
        for name in (keys.FILES, JobKeys("ftjob-1").checkpoints, keys.audit("changes")):
            await keyed.redis.delete(name)
            await keyed.redis.set(name, f"no hash, and a secret: {keyed.admin}")
        for http in (alice, browser, admin):  # in a route, in the door, in what writes an answer
            error_of(await http.get("/v1/files"), 500)
            assert (await http.get("/v1/fine_tuning/jobs/ftjob-1/checkpoints")).status_code in (404, 500)
            assert (await http.get("/v1/files/file-1")).status_code == 500
            await http.post("/v1/files", **UPLOAD)
            await http.post("/v1/fine_tuning/jobs", json=body("file-1"))
        monkeypatch.setattr(type(gateway.models), "all", broken)
        error_of(await alice.get("/v1/models"), 500)
        monkeypatch.setattr(type(gateway.keys), "open_session", broken)
        error_of(await browser.post("/login", data={"key": keyed.bob}), 500)
    said = "".join(capfd.readouterr()) + caplog.text
    assert said.count("request failed") >= 10
    assert "Traceback" in said
    shown = [secret for secret in (keyed.alice, keyed.bob, keyed.admin, *tokens) if secret in said]
    assert shown == []


async def broken(self: object, *arguments: object, **named: object) -> None:
    raise ZeroDivisionError(f"nobody foresaw {arguments} {named}")
