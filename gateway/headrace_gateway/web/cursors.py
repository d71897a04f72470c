"""Places in a job's history as clients give them back: an event's id, or an entry's number. All raise
`InvalidRequest`."""

from __future__ import annotations

from headrace_core.errors import InvalidRequest
from headrace_core.jobs.job_store import event_id

_DIGITS = 15


def entry_number(text: str, param: str) -> int:
    """The number that `text` is."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise InvalidRequest(f"{param}: {text!r} is not the id of an entry of this job", param=param)
    return int(text)


def event_number(job_id: str, text: str, param: str) -> int:
    """The number in an event's id; the event must be of this job."""
    before = event_id(job_id, 0)[:-1]
    if not text.startswith(before):
        raise InvalidRequest(f"{param}: {text!r} is not the id of an event of this job", param=param)
    return entry_number(text.removeprefix(before), param)


def resume_after(job_id: str, last_event_id: str | None) -> int:
    """The number after which a stream goes on: 0 for the header a client has not sent."""
    if last_event_id is None:
        return 0
    if last_event_id.startswith("ftevent-"):
        return event_number(job_id, last_event_id, "Last-Event-ID")
    return entry_number(last_event_id, "Last-Event-ID")
