"""The OpenAPI document is complete, and its examples are what it says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi.routing import APIRoute

from headrace_core.config.service_settings import Settings
from headrace_gateway.app import create_app
from headrace_gateway.openapi.document import operations

from .conftest import Served

APP = create_app(Settings(), "redis://127.0.0.1:1")  # nothing connects before it is started
DOCUMENT = APP.openapi()
OPERATIONS = [pytest.param(path, method, o, id=o["operationId"]) for path, method, o in operations(DOCUMENT)]
every_operation = pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]})


@every_operation
def test_an_operation_is_described(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert len(operation["summary"]) <= 120
    assert operation["description"].endswith((".", "!"))
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation.get("parameters", ()):
        assert parameter["schema"], parameter["name"]


@every_operation
def test_an_operation_names_its_errors(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    assert "422" not in responses
    expected = {"401", "429", "503"} if path.startswith("/v1/") else set()
    expected |= {"404"} if "{" in path else set()
    expected |= {"400", "413"} if "requestBody" in operation else {"400"} if "parameters" in operation else set()
    assert expected <= set(responses)
    for status, response in responses.items():
        assert response["headers"]["x-request-id"] == {"$ref": "#/components/headers/RequestId"}
        if status != "200":
            assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}


@every_operation
def test_an_answer_has_a_schema_and_an_example_of_it(path: str, method: str, operation: dict[str, Any]) -> None:
    content = operation["responses"]["200"]["content"]
    for media_type, described in content.items():
        assert described.get("schema") or described.get("itemSchema"), media_type
        if media_type == "application/json":
            validator(described["schema"]).validate(described["example"])
        elif media_type == "text/event-stream":
            check = validator(described["itemSchema"])
            for event in events_of(described["example"]):
                check.validate(event)
        else:
            assert isinstance(described["example"], str)


def events_of(stream: str) -> list[dict[str, str]]:
    told = [dict(line.split(": ", 1) for line in piece.splitlines()) for piece in stream.strip().split("\n\n")]
    assert len(told) >= 2
    return [{"event": "message"} | event for event in told]


@every_operation
def test_a_body_has_a_schema_and_an_example_of_it(path: str, method: str, operation: dict[str, Any]) -> None:
    for described in operation.get("requestBody", {}).get("content", {}).values():
        validator(described["schema"]).validate(described["example"])


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(ids) == len(set(ids))


def test_only_pages_and_assets_are_not_in_the_document() -> None:
    hidden = {route.path for route in APP.routes if isinstance(route, APIRoute) and not route.include_in_schema}
    assert not [path for path in hidden if path.startswith("/v1")]
    assert "HTTPValidationError" not in json.dumps(DOCUMENT)


def test_a_wrong_example_would_be_found() -> None:
    wrong = {"id": "file-1", "object": "file"}
    with pytest.raises(jsonschema_rs.ValidationError):
        validator({"$ref": "#/components/schemas/FileObject"}).validate(wrong)


async def test_it_is_served(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.get("/openapi.json")
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    assert answer.json()["openapi"].startswith("3.1")
