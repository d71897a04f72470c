"""Every answer has a request id, and every error is the envelope, whatever raised it."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headrace_gateway.middleware import request_envelope
from headrace_gateway.openapi.document import operations
from headrace_lab.services.jobs import stored_job

from .conftest import MAX_UPLOAD_BYTES, Served, body, rows, upload


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return error


@pytest.fixture
async def http(served: Served) -> Any:
    async with httpx.AsyncClient(base_url=served.url) as http:
        yield http


@pytest.mark.parametrize(
    ("method", "path", "status", "param"),
    [
        ("GET", "/v1/nowhere", 404, None),
        ("PUT", "/v1/files", 405, None),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none", 404, "fine_tuning_job_id"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none/events", 404, "fine_tuning_job_id"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none/events?stream=true", 404, "fine_tuning_job_id"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none/ledger", 404, "fine_tuning_job_id"),
        ("POST", "/v1/fine_tuning/jobs/ftjob-none/cancel", 404, "fine_tuning_job_id"),
        ("GET", "/v1/fine_tuning/jobs?limit=0", 400, "limit"),
        ("GET", "/v1/fine_tuning/jobs?after=ftjob-none", 400, "after"),
        ("POST", "/v1/files", 400, "file"),
        ("GET", "/v1/files/file-none/content", 404, "file_id"),
        ("GET", "/dashboard/none.js", 404, None),
    ],
)
async def test_errors(http: httpx.AsyncClient, method: str, path: str, status: int, param: str | None) -> None:
    assert error_of(await http.request(method, path), status)["param"] == param


async def test_a_body_that_is_not_json(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/fine_tuning/jobs", content=b'{"model": ', headers={"content-type": "application/json"}
    )
    assert error_of(response, 400)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "asked",
    [
        {"grader": {"type": "string_check", "name": "\ud800"}, "model_sample": "a"},
        {"grader": {"type": "string_check", "name": "a"}, "model_sample": "\ud800"},
        {"grader": {"type": "string_check", "name": "a"}, "model_sample": "a", "item": {"a": "\ud800"}},
        {"grader": {"type": "string_check", "name": "a"}, "model_sample": "a", "\ud800": 1},
    ],
)
async def test_half_a_character_is_refused(http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    content = json.dumps(asked).encode()
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/fine_tuning/alpha/graders/run", content=content, headers=headers)
    error_of(response, 400)


@pytest.mark.parametrize("changed", [{"model": "/" + "a" * 300}, {"model": "/\0"}, {"training_file": "\0"}])
async def test_names_that_no_file_can_have(http: httpx.AsyncClient, changed: dict[str, str]) -> None:
    error = error_of(await http.post("/v1/fine_tuning/jobs", json=body("file-1") | changed), 400)
    assert error["param"] == next(iter(changed))


async def test_no_route_answers_409(http: httpx.AsyncClient) -> None:
    """OpenAI's client repeats it by itself."""
    document = (await http.get("/openapi.json")).json()
    statuses = {s for _, _, operation in operations(document) for s in operation["responses"]}
    assert "409" not in statuses
    assert "400" in statuses


async def test_a_stream_has_a_request_id_too(http: httpx.AsyncClient, served: Served) -> None:
    await served.jobs.create(stored_job())
    await served.jobs.move("ftjob-1", "cancelled")
    for path in ("events?stream=true", "stream"):
        async with http.stream("GET", f"/v1/fine_tuning/jobs/ftjob-1/{path}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-request-id"].startswith("req_")


async def test_a_part_of_an_upload_may_say_that_it_is_bytes(http: httpx.AsyncClient) -> None:
    part = ("train.jsonl", rows(1), "application/octet-stream")
    response = await http.post("/v1/files", files={"file": part}, data={"purpose": "fine-tune"})
    assert response.json()["bytes"] == len(rows(1))


async def test_a_missing_field_is_named_by_its_path(http: httpx.AsyncClient) -> None:
    asked = body("file-1")
    del asked["method"]["reinforcement"]["grader"]
    error = error_of(await http.post("/v1/fine_tuning/jobs", json=asked), 400)
    assert error["param"] == "method.reinforcement.grader"


async def test_bodies_beyond_their_limits(http: httpx.AsyncClient) -> None:
    large = body("file-1", suffix="x" * request_envelope.MAX_JSON_BYTES)
    assert error_of(await http.post("/v1/fine_tuning/jobs", json=large), 413)["code"] == "too_large"
    for size in (MAX_UPLOAD_BYTES + 1, MAX_UPLOAD_BYTES * 5):  # caught by the store, and while the body comes in
        form = upload(b"x" * size, "large.jsonl")
        assert error_of(await http.post("/v1/files", **form), 413)["code"] == "too_large"
    good = upload(rows(1), "good.jsonl")
    assert (await http.post("/v1/files", **good)).status_code == 200


async def test_an_unexpected_error_names_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()
    request_envelope.install(app, MAX_UPLOAD_BYTES)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("nobody expected this")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as http:
        response = await http.get("/broken")
    error = error_of(response, 500)
    assert "nobody expected" not in response.text
    assert response.headers["x-request-id"] in error["message"]
    assert response.headers["x-request-id"] in capsys.readouterr().out


async def test_health(http: httpx.AsyncClient, served: Served) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    served.controllers.away = True
    error = error_of(await http.get("/readyz"), 503)
    assert (error["code"], "Ray" in error["message"], "Redis" in error["message"]) == ("not_ready", True, False)


async def test_the_app_reconciles(served: Served) -> None:
    await asyncio.wait_for(served.controllers.reconciled.wait(), timeout=5)
    assert await served.redis.ttl("headrace:gateway") > 0


async def test_request_ids_differ(http: httpx.AsyncClient) -> None:
    ids = {(await http.get("/healthz")).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(uuid.UUID(hex=i.removeprefix("req_") + "0" * 8) for i in ids)


async def test_what_a_request_says_is_escaped_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()
    request_envelope.install(app, MAX_UPLOAD_BYTES)

    @app.get("/{name}")
    async def broken(name: str) -> None:
        raise ZeroDivisionError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as http:
        for path in ("/%1b[2Jx", "/%0a2026-11-23%20[info]%20all%20is%20well", "/%c2%9b2J"):
            assert (await http.get(path)).status_code == 500
    said = capsys.readouterr().out
    assert not [planted for planted in ("\x1b[2J", "\x9b", "\n2026-11-23 [info") if planted in said]
    assert r"\x1b[2Jx" in said
