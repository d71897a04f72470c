"""Parses positions in a job's history that clients send: an event's id, or an entry's number. All functions raise
`InvalidRequest`."""

from __future__ import annotations

from headrace_core.errors import InvalidRequest
from headrace_core.types.job import event_id

_DIGITS = 15


def entry_number(text: str, param: str) -> int:
    """The number of a history entry."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise InvalidRequest(f"{param}: {text!r} is not the id of an entry of this job", param=param)
    return int(text)


def event_number(job_id: str, text: str, param: str) -> int:
    """The entry number in an event's id, which must be of this job."""
    before = event_id(job_id, 0)[:-1]
    if not text.startswith(before):
        raise InvalidRequest(f"{param}: {text!r} is not the id of an event of this job", param=param)
    return entry_number(text.removeprefix(before), param)


def resume_after(job_id: str, last_event_id: str | None) -> int:
    """The entry number after which a stream continues; 0 if the client sent no Last-Event-ID."""
    if last_event_id is None:
        return 0
    if last_event_id.startswith("ftevent-"):
        return event_number(job_id, last_event_id, "Last-Event-ID")
    return entry_number(last_event_id, "Last-Event-ID")
