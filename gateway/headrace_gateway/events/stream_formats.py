"""The two formats of a job's history as server-sent events, and the downsampling of its past."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from headrace_core.jobs.history import EVENTS, KINDS, HistoryEntry, Kind, event_of, readable_entries
from headrace_core.redis_access.json_records import UNREADABLE

from ..views.objects import event_object

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """Which entries a stream contains, and how they are encoded."""

    kinds: Collection[Kind]
    encode: Callable[[str, HistoryEntry], bytes]
    """(job id, entry) → one server-sent event; its id is the cursor for a reconnect."""
    states: bool
    """Whether the stream also contains the job's state."""
    done: bytes
    """Sent after the last entry."""


def sse(name: str, data: bytes, entry_id: str | None = None) -> bytes:
    """Encode one server-sent event. `data`: JSON without line breaks."""
    begin = b"" if entry_id is None else b"id: %s\n" % entry_id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (begin, name.encode(), data)


def _encode_openai(job_id: str, entry: HistoryEntry) -> bytes:
    event = event_of(job_id, entry)
    return sse("fine_tuning.job.event", _encode(event_object(event)), event.id)


def _encode_all(job_id: str, entry: HistoryEntry) -> bytes:
    """Every kind of entry. A damaged measurement is omitted, and named in the log."""
    if entry.kind == "event":
        return sse("event", _encode(event_object(event_of(job_id, entry))), str(entry.number))
    return b"".join(sse(e.kind, e.data, str(e.number)) for e in readable_entries(job_id, [entry]))


OPENAI = StreamFormat(EVENTS, _encode_openai, states=False, done=b"data: [DONE]\n\n")
EVERYTHING = StreamFormat(KINDS, _encode_all, states=True, done=sse("done", b"[DONE]"))


def downsample(entries: Sequence[HistoryEntry], max_entries: int) -> list[HistoryEntry]:
    """At most `max_entries` (2 or more) entries of each source: the first, the last, and evenly spaced ones between.

    Of messages for people, the first and the newest ones are taken instead: gaps between messages would confuse.
    """
    by_source: dict[str, list[HistoryEntry]] = {}
    for entry in entries:
        by_source.setdefault(_source_of(entry), []).append(entry)
    selected: list[HistoryEntry] = []
    for source, of_source in by_source.items():
        last = len(of_source) - 1
        if last < max_entries:
            selected += of_source
        elif source == "said":
            selected += [of_source[0], *of_source[last - max_entries + 2 :]]
        else:
            selected += (of_source[i * last // (max_entries - 1)] for i in range(max_entries))
    return sorted(selected)


class _Type(msgspec.Struct, frozen=True):
    type: str


def _source_of(entry: HistoryEntry) -> str:
    if entry.kind != "event":
        return entry.source
    try:
        return "said" if msgspec.json.decode(entry.data, type=_Type).type == "message" else "metrics"
    except UNREADABLE:  # it is sent as an event that names the damage
        return "said"
