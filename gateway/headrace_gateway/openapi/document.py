"""The OpenAPI document: what FastAPI makes of the routes, and what it cannot know of them.

Every operation has a summary (the first sentence of its docstring), examples of its body and its answer
(`examples.json`, by operation id), the errors it can end with, and `x-request-id` on every answer. FastAPI's
own 422 is not there, because it never occurs: `web.errors` makes every error the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from headrace_core.types.metrics import EvaluationMetrics, RewardMetrics, StepMetrics, UpdateMetrics, WorkerMetrics

from ..schemas.base import ErrorAnswer
from ..schemas.chat import ChatCompletionChunk
from .event_streams import SCHEMAS, add_events

_DESCRIPTION = """\
Reinforcement jobs for language models: OpenAI's fine-tuning surface for the official client with only `base_url`
changed, and beside it what a job's insides need. Where the service asks for keys, every request carries one as a bearer
token.
"""
_TAGS = {
    "files": "Training and validation data, and results.",
    "jobs": "Jobs, what they say, and what they save.",
    "observe": "How jobs run: ledger, staleness, rewards, measurements, completions.",
    "control": "Changing what runs: settings, workers, queues, weights, forks.",
    "chat": "Using a trained checkpoint.",
    "graders": "Trying a grader before a job depends on it.",
    "models": "What can be trained, and what was.",
    "access": "Keys and the audit log, for admins.",
    "health": "Whether the service is well.",
}
_PARAMETERS = {
    "job_id": "Id of a job.",
    "group": "Number of a group.",
    "name": "Name of a model; it may hold slashes.",
    "worker": "Name of a worker within its job.",
    "after": "Id of the last entry of the page before.",
    "limit": "Most entries of a page.",
    "order": "`desc` is newest first.",
    "from_step": "Leaves out what was measured before this step.",
    "last-event-id": "Id of the last event that the client has received; the stream continues after it.",
}
_ERRORS = {
    "400": "The request cannot be carried out: the message says what to change. A wrong state is 400 too.",
    "401": "No key, or none that is valid.",
    "403": "The key does not reach so far.",
    "404": "There is no such thing.",
    "413": "The body is larger than is taken.",
    "429": "Too many requests: `retry-after` says when to come again.",
    "503": "A part that is needed does not answer; the request may be repeated.",
}
_METRICS = (StepMetrics, EvaluationMetrics, UpdateMetrics, WorkerMetrics, RewardMetrics)


def operation_id(route: APIRoute) -> str:
    """`<tag>_<function>`: unique, because a tag's functions are."""
    return "_".join([*map(str, route.tags[:1]), route.name])


def install(app: FastAPI) -> None:
    """Serves the document at /openapi.json."""

    @cache
    def document() -> dict[str, Any]:
        made = get_openapi(
            title="Headrace",
            version="1",
            description=_DESCRIPTION,
            routes=app.routes,
            tags=[{"name": name, "description": description} for name, description in _TAGS.items()],
        )
        return _completed(made)

    app.openapi = document  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    examples = json.loads((resources.files(__package__) / "examples.json").read_text(encoding="utf-8"))
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"] |= _unnamed_schemas() | _metric_schemas()
    components["schemas"]["MeasurementObject"]["properties"]["data"] = {
        "anyOf": [{"$ref": SCHEMAS + metrics.__name__} for metrics in _METRICS]
    }
    components["headers"] = {
        "RequestId": {"description": "Names the request in the service's log.", "required": True,
                      "schema": {"type": "string", "pattern": "^req_[0-9a-f]{24}$"}},
    }  # fmt: skip
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, _, operation in operations(document):
        _describe(operation)
        add_events(operation)
        _add_errors(path, operation)
        _add_examples(operation, examples.get(operation["operationId"], {}))
        for response in operation["responses"].values():
            response["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
        if path.startswith("/v1/"):
            operation["security"] = [{"key": []}, {}]
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) of each."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _describe(operation: dict[str, Any]) -> None:
    description = operation.get("description", "")
    operation["summary"] = re.split(r"[.:;](?:\s|$)", description, maxsplit=1)[0]
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in _PARAMETERS:
            parameter.setdefault("description", _PARAMETERS[parameter["name"]])


def _add_errors(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    body = "requestBody" in operation
    errors = {
        "400": body or bool(operation.get("parameters")),
        "401": path.startswith("/v1/"),
        "403": path.startswith("/v1/headrace/"),
        "404": "{" in path,
        "413": body,
        "429": path.startswith("/v1/"),
        "503": path != "/healthz",
    }
    content = {"application/json": {"schema": {"$ref": SCHEMAS + ErrorAnswer.__name__}}}
    for status, occurs in errors.items():
        if occurs:
            responses.setdefault(status, {"description": _ERRORS[status], "content": content})


def _add_examples(operation: dict[str, Any], examples: dict[str, Any]) -> None:
    if "body" in examples:
        for media in operation["requestBody"]["content"].values():
            media["example"] = examples["body"]
    for media_type, answer in examples.get("answers", {}).items():
        operation["responses"]["200"]["content"][media_type]["example"] = answer


def _unnamed_schemas() -> dict[str, Any]:
    """Of the models that no route names."""
    answers: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]]
    answers = [("", "serialization", TypeAdapter(shape)) for shape in (ErrorAnswer, ChatCompletionChunk)]
    schemas: dict[str, Any] = TypeAdapter.json_schemas(answers, ref_template=SCHEMAS + "{model}")[1]["$defs"]
    return schemas


def _metric_schemas() -> dict[str, Any]:
    """Of the structs that workers write. A figure that is not finite is null in JSON."""
    _, schemas = msgspec.json.schema_components(_METRICS, ref_template=SCHEMAS + "{name}")
    for schema in schemas.values():
        for field, figure in schema["properties"].items():
            schema["properties"][field] = _or_null(figure)
    return schemas


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == "number":
        return {"anyOf": [schema, {"type": "null"}]}
    inner = schema.get("additionalProperties")
    return schema | {"additionalProperties": _or_null(inner)} if isinstance(inner, dict) else schema
