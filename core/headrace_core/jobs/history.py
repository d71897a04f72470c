"""A job's history: its events and measurements, numbered.

    append_event, record ──► append.lua ──┬─► one append-only stream per kind               ──► pages, subscribers
                                          └─► summary: newest entry of each source,
                                              sparkline, pace                               ──► overview, Prometheus

Invariants: a job's entries are numbered 1, 2, 3, … over all kinds, and a number is assigned atomically with its entry,
so that a reader who has read up to a number has missed nothing before it.

Heartbeats (`worker`, `reward`) arrive at a fixed rate. A heartbeat is appended only if the time since the last appended
one of its source is at least `1 / MAX_HEARTBEATS` of the time since the first one. So nothing is left out at the start,
later the count grows with the logarithm of a job's time, and the newest heartbeat is always in the summary.

Each kind may take `MAX_BYTES` bytes. When they are used up, every second entry of the older three quarters is removed,
never the first, and counted (`left_out`). So the newest quarter is complete, and older history is increasingly coarse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from .. import redis_access
from ..redis_access.client import run
from ..redis_access.json_records import UNREADABLE, damaged, is_object, log_damaged_once, none_if_damaged, whole_number
from ..redis_access.keys import JobKeys
from ..types.job import Event, event_id
from ..types.metrics import AgeMetrics, Metrics, StepMetrics

Kind = Literal["event", "step", "evaluation", "update", "worker", "reward"]
KINDS: tuple[Kind, ...] = ("event", "step", "evaluation", "update", "worker", "reward")
EVENTS, MEASURED, STEPS = KINDS[:1], KINDS[1:], KINDS[1:2]
MAX_HEARTBEATS = 2000
MAX_NEWEST_EVENTS = 2000
MAX_BYTES = 16 * 1024 * 1024
"""Of one kind, data and source names together: enough for some ten thousand steps."""
_HEARTBEATS = ("worker", "reward")
_READ_ALL_FACTOR = 2
"""`sampled` reads a kind completely if it has at most this many times the entries wanted."""
_FULLY_SAMPLED_SOURCES, _MIN_SAMPLES = 4, 50
"""A kind with more than 4 sources is sampled at fewer positions, but at no fewer than 50."""


class HistoryEntry(NamedTuple):
    """One event or measurement."""

    number: int
    kind: Kind
    source: str
    """The kind, followed by the worker's name if one wrote it: `step`, `update rollout-0`."""
    data: bytes
    """JSON. May be anything if the entry is damaged: decode it by `json_records`, or filter with `readable_entries`."""


class Spark(msgspec.Struct, frozen=True):
    """Sparklines of at most 40 points. All points cover the same number of steps, but the last may cover fewer."""

    mean: list[float] = []
    """Mean reward over the point's steps that have a reward; 0 where `count` is 0."""
    count: list[int] = []
    """How many of the point's steps have a reward."""
    age: list[float] = []
    """Largest age, in policy versions, of a token that contributed to the gradient."""

    @property
    def reward(self) -> list[float]:
        """Mean rewards of the points that have one."""
        return [mean for mean, count in zip(self.mean, self.count, strict=True) if count]


def event_of(job_id: str, entry: HistoryEntry) -> Event:
    """Decodes an entry of kind `event`. A damaged one is replaced by an error event that says so."""
    id_ = event_id(job_id, entry.number)
    try:
        return msgspec.structs.replace(msgspec.json.decode(entry.data, type=Event), id=id_)
    except UNREADABLE as error:
        return Event(id_, 0.0, "error", f"this entry of the job's history is damaged: {error}")


def readable_entries(job_id: str, entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """The entries whose data is a JSON object, which can be passed on undecoded. The others are logged."""
    readable = []
    for entry in entries:
        if is_object(entry.data):
            readable.append(entry)
        else:
            where = f"{JobKeys(job_id).history(entry.kind)} {entry.number}-0"
            log_damaged_once(damaged(where, "it is no object of JSON"))
    return readable


async def page_of_entries(
    history: History, job_id: str, number: int, count: int, kinds: Collection[Kind]
) -> tuple[list[HistoryEntry], bool]:
    """(readable entries of these kinds after `number`, oldest first, at most `count`; whether more follow).

    Damaged entries are skipped, but a page is never empty while more entries follow.
    """
    while True:
        entries = await history.after(job_id, number, count + 1, kinds)
        readable, more = readable_entries(job_id, entries[:count]), len(entries) > count
        if readable or not more:
            return readable, more
        number = entries[count - 1].number


@cache
def append_script() -> str:
    """The text of lua/append.lua."""
    return (resources.files(redis_access) / "lua" / "append.lua").read_text(encoding="utf-8")


class History:
    """The events and measurements of all jobs. `max_heartbeats` and `max_bytes`: see the module."""

    def __init__(self, redis: Redis, max_heartbeats: int = MAX_HEARTBEATS, max_bytes: int = MAX_BYTES) -> None:
        self._redis = redis
        self._max_heartbeats = max_heartbeats
        self._max_bytes = max_bytes
        self._append = redis.register_script(append_script())

    async def append_event(self, job_id: str, data: bytes, time: float) -> int:
        """Append an event (`data` is JSON, `time` Unix seconds). Returns its number."""
        return await self._append_entry(job_id, "event", "event", data, time, ("", "", ""))

    async def record(self, job_id: str, metrics: Metrics) -> None:
        """Append a measurement. A heartbeat soon after the last appended one only replaces the summary's newest."""
        kind, worker = cast("Kind", metrics.kind), getattr(metrics, "worker", None)
        step_figures = _step_figures(metrics) if isinstance(metrics, StepMetrics) else ("", "", "")
        source = kind if worker is None else f"{kind} {worker}"
        await self._append_entry(job_id, kind, source, msgspec.json.encode(metrics), metrics.time, step_figures)

    async def _append_entry(
        self, job_id: str, kind: Kind, source: str, data: bytes, time: float, step_figures: Sequence[int | float | str]
    ) -> int:
        k = JobKeys(job_id)
        max_heartbeats = self._max_heartbeats if kind in _HEARTBEATS else ""
        arguments = [source, data, repr(time), max_heartbeats, self._max_bytes, *step_figures]
        keys = [k.job, k.summary, k.history(kind), k.marks, k.thinned]
        return int(await self._append(keys=keys, args=arguments))

    async def after(
        self,
        job_id: str,
        number: int,
        count: int,
        kinds: Collection[Kind] = KINDS,
        block: float | None = None,
    ) -> list[HistoryEntry]:
        """Entries of these kinds after `number`, oldest first; fewer than `count` only if there are no more.

        With several kinds there may be more than `count`. `block`: seconds to wait for the first entry, if there is
        none.
        """
        k = JobKeys(job_id)
        streams: dict[Any, Any] = {k.history(kind): f"{number}-0" for kind in kinds}
        milliseconds = None if block is None else max(1, int(block * 1000))
        read = await run(self._redis.xread(streams, count=count, block=milliseconds))
        entries: list[HistoryEntry] = []
        complete_to: int | None = None
        for stream, of_kind in read:
            kind = cast("Kind", stream.decode().rsplit(":", 1)[1])
            entries += (_entry(kind, entry_id, fields) for entry_id, fields in of_kind)
            if len(of_kind) == count:  # more of this kind may follow, with numbers below those read of other kinds
                complete_to = min(complete_to or entries[-1].number, entries[-1].number)
        entries.sort()
        return entries if complete_to is None else [e for e in entries if e.number <= complete_to]

    async def newest(self, job_id: str, kind: Kind, before: int | None, count: int) -> list[HistoryEntry]:
        """The last `count` entries of a kind before the number `before` (None: of all), newest first."""
        end = "+" if before is None else f"({before}-0"
        found = await run(self._redis.xrevrange(JobKeys(job_id).history(kind), max=end, count=count))
        return [_entry(kind, entry_id, fields) for entry_id, fields in found]

    async def sampled(self, job_id: str, number: int, to: int, max_points: int) -> list[HistoryEntry]:
        """Entries after `number` up to `to`, oldest first, downsampled.

        A kind with far more entries than wanted is reduced to about `max_points` of each source, spread evenly by
        number, its oldest and newest entry among them. Events cannot stand for one another: of those, the oldest
        `max_points` and the newest `MAX_NEWEST_EVENTS` are returned.

        Takes two round trips; the amount read grows with `max_points` and the number of sources, not with the job's
        length.
        """
        k = JobKeys(job_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hkeys(k.summary)
            for kind in KINDS:
                pipe.xlen(k.history(kind))
                pipe.xrange(k.history(kind), f"({number}-0", f"{to}-0", count=1)
                pipe.xrevrange(k.history(kind), f"{to}-0", f"({number}-0", count=1)
            names, *bounds = await pipe.execute()
        ranges: list[_ReadRange] = []
        for kind, length, first, last in zip(KINDS, bounds[::3], bounds[1::3], bounds[2::3], strict=True):
            if first:
                sources = sum(source.split(b" ")[0] == kind.encode() for source in names)
                ends = _number(first[0][0]), _number(last[0][0])
                ranges += _ranges_to_read(kind, length, *ends, max(1, sources), max_points)
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in ranges:
                if part.backwards:
                    pipe.xrevrange(k.history(part.kind), f"{part.number}-0", f"({number}-0", count=part.limit)
                else:
                    pipe.xrange(k.history(part.kind), f"{part.number}-0", f"{to}-0", count=part.limit)
            read = await pipe.execute()
        entries = (_entry(part.kind, *raw) for part, of_part in zip(ranges, read, strict=True) for raw in of_part)
        return sorted({entry.number: entry for entry in entries}.values())  # ranges may overlap

    async def before_step(self, job_id: str, step: int) -> int:
        """The number of the entry before that of `step`, or of the next recorded step. The newest entry's number if
        there is no such step yet."""
        k = JobKeys(job_id)
        found = await run(self._redis.zrangebyscore(k.marks, step, "+inf", start=0, num=1))
        return whole_number(found[0], k.marks) - 1 if found else await self.last(job_id)

    async def last_step(self, job_id: str) -> int:
        """The newest recorded step; 0 before the first."""
        found = await run(self._redis.zrange(JobKeys(job_id).marks, -1, -1, withscores=True))
        return int(found[0][1]) if found and math.isfinite(found[0][1]) else 0

    async def left_out(self, job_id: str) -> dict[str, int]:
        """How many entries of each kind were removed to stay within `max_bytes`."""
        counts = await run(self._redis.hmget(JobKeys(job_id).summary, [f"left out {kind}" for kind in KINDS]))
        where = f"{JobKeys(job_id).summary} left out"
        return {kind: whole_number(count, f"{where} {kind}") for kind, count in zip(KINDS, counts, strict=True)}

    async def last(self, job_id: str) -> int:
        """The newest entry's number; 0 before the first. It is read from the streams if the summary's is damaged."""
        k = JobKeys(job_id)
        count = none_if_damaged(whole_number, await run(self._redis.hget(k.summary, "entries")), f"{k.summary} entries")
        if count is not None:
            return count
        async with self._redis.pipeline(transaction=False) as pipe:
            for kind in KINDS:
                pipe.xrevrange(k.history(kind), count=1)
            newest = await pipe.execute()
        return max((_number(entries[0][0]) for entries in newest if entries), default=0)


def _number(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _entry(kind: Kind, entry_id: bytes, fields: dict[bytes, bytes]) -> HistoryEntry:
    source = fields.get(b"source", b"").decode(errors="replace")
    return HistoryEntry(_number(entry_id), kind, source, fields.get(b"data", b""))


class _ReadRange(NamedTuple):
    """One read of a kind's stream: up to `limit` entries from `number` on, forwards or backwards."""

    kind: Kind
    number: int
    limit: int
    backwards: bool = False


def _ranges_to_read(kind: Kind, length: int, first: int, last: int, sources: int, max_points: int) -> list[_ReadRange]:
    """The reads that sample a kind whose `length` entries have numbers `first` … `last` and come from `sources`."""
    positions = max(min(max_points, _MIN_SAMPLES), min(max_points, max_points * _FULLY_SAMPLED_SOURCES // sources))
    read_all_below = MAX_NEWEST_EVENTS if kind == "event" else _READ_ALL_FACTOR * positions * sources
    max_entries = min(length, last - first + 1)
    if max_entries <= read_all_below:
        return [_ReadRange(kind, first, max_entries)]
    if kind == "event":
        return [_ReadRange(kind, first, max_points), _ReadRange(kind, last, MAX_NEWEST_EVENTS, backwards=True)]
    starts = (first + i * (last - first) // (positions - 1) for i in range(positions - 1))
    # `sources` neighbouring entries at each position: on average one of each source.
    return [*(_ReadRange(kind, start, sources) for start in starts), _ReadRange(kind, last, sources, backwards=True)]


def _step_figures(step: StepMetrics) -> tuple[int, float | str, int | str]:
    """(step, mean reward, largest age), from which append.lua makes the sparkline; '' where there is none."""
    reward = "" if step.reward_mean is None else step.reward_mean
    return step.step, reward, largest_age(step.ages)


def largest_age(ages: dict[str, AgeMetrics]) -> int | str:
    """The largest age of a token that contributed to the step; '' where none did."""
    return max((int(age) for age, of_age in ages.items() if of_age.tokens > of_age.masked), default="")
