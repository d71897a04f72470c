"""The two ways in which a job's history is told as server-sent events, and how what is past is thinned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from headrace_core.jobs.history import EVENTS, KINDS, HistoryEntry, Kind, readable_entries
from headrace_core.jobs.job_store import event_of
from headrace_core.redis_access.json_records import UNREADABLE

from ..views.objects import event_object

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """What a stream tells, and how."""

    kinds: Collection[Kind]
    encode: Callable[[str, HistoryEntry], bytes]
    """(job id, entry) → one server-sent event, whose id is where to go on."""
    states: bool
    """Whether it tells of the job's state, too."""
    done: bytes
    """After the last entry."""


def sse(name: str, data: bytes, entry_id: str | None = None) -> bytes:
    """One server-sent event; `data` is JSON, which has no line breaks."""
    begin = b"" if entry_id is None else b"id: %s\n" % entry_id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (begin, name.encode(), data)


def _of_openai(job_id: str, entry: HistoryEntry) -> bytes:
    event = event_of(job_id, entry)
    return sse("fine_tuning.job.event", _encode(event_object(event)), event.id)


def _of_everything(job_id: str, entry: HistoryEntry) -> bytes:
    """Nothing of a measurement that is damaged: the log names it."""
    if entry.kind == "event":
        return sse("event", _encode(event_object(event_of(job_id, entry))), str(entry.number))
    return b"".join(sse(e.kind, e.data, str(e.number)) for e in readable_entries(job_id, [entry]))


OPENAI = StreamFormat(EVENTS, _of_openai, states=False, done=b"data: [DONE]\n\n")
EVERYTHING = StreamFormat(KINDS, _of_everything, states=True, done=sse("done", b"[DONE]"))


def downsample(entries: Sequence[HistoryEntry], most: int) -> list[HistoryEntry]:
    """At most `most` (2 or more) of each source: the first, the last, and evenly many between.

    Of what a job says that is no measurement, the first and the newest: a line left out between two others is missed.
    """
    by_source: dict[str, list[HistoryEntry]] = {}
    for entry in entries:
        by_source.setdefault(_thinned_with(entry), []).append(entry)
    kept: list[HistoryEntry] = []
    for source, of_source in by_source.items():
        last = len(of_source) - 1
        if last < most:
            kept += of_source
        elif source == "said":
            kept += [of_source[0], *of_source[last - most + 2 :]]
        else:
            kept += (of_source[i * last // (most - 1)] for i in range(most))
    return sorted(kept)


class _Type(msgspec.Struct, frozen=True):
    type: str


def _thinned_with(entry: HistoryEntry) -> str:
    if entry.kind != "event":
        return entry.source
    try:
        return "said" if msgspec.json.decode(entry.data, type=_Type).type == "message" else "metrics"
    except UNREADABLE:  # told as an event of its own, which says so
        return "said"
