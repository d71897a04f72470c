"""Describes the routes that send server-sent events, for the OpenAPI document: each event has a schema, and its `data`
is JSON with a schema of its own."""

from __future__ import annotations

from typing import Any

SCHEMAS = "#/components/schemas/"
"""Path of the schemas within the document."""
_MEDIA_TYPE = "text/event-stream"
_DONE = {"const": "[DONE]"}
_STATE = {
    "type": "object",
    "description": "The job, the state counts of its groups (null if damaged), and figures of its reward.",
    "properties": {
        "job": {"$ref": SCHEMAS + "JobObject"},
        "ledger": {"type": ["object", "null"]},
        "reward": {"type": "object"},
    },
    "required": ["job", "ledger", "reward"],
}
_EVENTS: dict[str, tuple[tuple[str, str | dict[str, Any]], ...]] = {
    "jobs_events": (("fine_tuning.job.event", "EventObject"), ("message", _DONE)),
    "observe_stream": (
        ("event", "EventObject"),
        ("step", "StepMetrics"),
        ("evaluation", "EvaluationMetrics"),
        ("update", "UpdateMetrics"),
        ("worker", "WorkerMetrics"),
        ("reward", "RewardMetrics"),
        ("state", _STATE),
        ("live", {"type": "object"}),
        ("done", _DONE),
    ),
    "chat_create": (("message", "ChatCompletionChunk"), ("message", "ErrorAnswer"), ("message", _DONE)),
}
"""By operation id: each event (`message` if it has no name), and the schema of its data, or its constant text."""


def add_events(operation: dict[str, Any]) -> None:
    """Add the description of the event stream to an operation that has one."""
    content = operation["responses"]["200"].get("content", {})
    if _MEDIA_TYPE in content:
        sent = _EVENTS[operation["operationId"]]
        content[_MEDIA_TYPE] = {"itemSchema": {"anyOf": [_event(name, data) for name, data in sent]}}


def _event(name: str, data: str | dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": SCHEMAS + data} if isinstance(data, str) else data
    content = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {
        "type": "object",
        "properties": {
            "event": {"const": name},
            "id": {"type": "string", "description": "Position in the stream, for `Last-Event-ID`."},
            "data": _DONE if data is _DONE else content,
        },
        "required": ["data"],
    }
