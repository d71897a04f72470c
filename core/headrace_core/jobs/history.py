"""What happened in a job: its events and its measurements, each with a number.

    tell, record ──► append.lua ──┬─► a stream for each kind, append-only     ──► pages, followers
                                  └─► summary: the newest of each source, sparkline, pace   ──► overview, Prometheus

Invariants: the numbers of a job's entries are 1, 2, 3, … over all kinds, given with the entry in one step, so that
whoever has read up to a number has missed nothing before it. Heartbeats (`worker`, `reward`) come by the clock; once
`HEARTBEATS_KEPT` of one source could have been kept, one is only where the last is `1 / HEARTBEATS_KEPT` of the time
since the first ago. So their count grows with the logarithm of a job's time, and the newest is always in the summary.

Each kind has `BYTES_KEPT` bytes. Until they are full everything is kept; then, of the older three quarters, every
second entry is left out and counted (`left_out`), never the first, and again when they are full again. So the newest
quarter is whole, and the past the coarser the older it is.
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
from ..redis_access.json_records import damaged, if_sound, is_object, name, whole_number
from ..redis_access.keys import JobKeys
from ..types.metrics import AgeMetrics, Metrics, StepMetrics

Kind = Literal["event", "step", "evaluation", "update", "worker", "reward"]
KINDS: tuple[Kind, ...] = ("event", "step", "evaluation", "update", "worker", "reward")
EVENTS, MEASURED, STEPS = KINDS[:1], KINDS[1:], KINDS[1:2]
HEARTBEATS_KEPT = 2000
EVENTS_SAMPLED = 2000
BYTES_KEPT = 16 * 1024 * 1024
"""Of one kind, data and sources: some ten thousand steps. When they are full, Redis writes them anew."""
_HEARTBEATS = ("worker", "reward")
_SAMPLED_WHOLE = 2
"""With no more than so many times the entries that are wanted, all are read."""
_SOURCES, _FEWEST = 4, 50
"""A kind with more sources than this is sampled at fewer places, but at no fewer."""


class HistoryEntry(NamedTuple):
    """One event or measurement."""

    number: int
    kind: Kind
    source: str
    """The kind, and the worker where it is of one: `step`, `update rollout-0`."""
    data: bytes
    """JSON; where the entry is damaged, whatever there is: it is read by `json_records`, or handed on by `whole`."""


class Spark(msgspec.Struct, frozen=True):
    """Sparklines of at most 40 points, each of as many steps as the others; the last may have fewer."""

    mean: list[float] = []
    """Mean reward of the steps that have one; 0 where `count` is."""
    count: list[int] = []
    age: list[float] = []
    """Largest age of a token that contributed."""

    @property
    def reward(self) -> list[float]:
        """The points that have a reward."""
        return [mean for mean, count in zip(self.mean, self.count, strict=True) if count]


def whole(job_id: str, entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """Those whose data is JSON, to be handed on unread; the log names the others."""
    found = []
    for entry in entries:
        if is_object(entry.data):
            found.append(entry)
        else:
            name(damaged(f"{JobKeys(job_id).history(entry.kind)} {entry.number}-0", "it is no object of JSON"))
    return found


async def page_of_entries(
    history: History, job_id: str, number: int, count: int, kinds: Collection[Kind]
) -> tuple[list[HistoryEntry], bool]:
    """(`whole` entries of these kinds after a number, oldest first, at most `count`; whether there are more). Of those
    that are damaged a page takes no notice, but it is never empty where more follow."""
    while True:
        found = await history.after(job_id, number, count + 1, kinds)
        good, more = whole(job_id, found[:count]), len(found) > count
        if good or not more:
            return good, more
        number = found[count - 1].number


@cache
def _source() -> str:
    return (resources.files(redis_access) / "lua" / "append.lua").read_text()


class History:
    """The events and measurements of all jobs."""

    def __init__(self, redis: Redis, heartbeats_kept: int = HEARTBEATS_KEPT, bytes_kept: int = BYTES_KEPT) -> None:
        self._redis = redis
        self._kept = heartbeats_kept
        self._bytes = bytes_kept
        self._append = redis.register_script(_source())

    async def append_event(self, job_id: str, data: bytes, time: float) -> int:
        """Append an event; returns its number."""
        return await self._added(job_id, "event", "event", data, time, ("", "", ""))

    async def record(self, job_id: str, metrics: Metrics) -> None:
        """Append a measurement; of heartbeats, the newest where the last one kept is not long ago."""
        kind, worker = cast("Kind", metrics.kind), getattr(metrics, "worker", None)
        marks = _marks(metrics) if isinstance(metrics, StepMetrics) else ("", "", "")
        source = kind if worker is None else f"{kind} {worker}"
        await self._added(job_id, kind, source, msgspec.json.encode(metrics), metrics.time, marks)

    async def _added(
        self, job_id: str, kind: Kind, source: str, data: bytes, time: float, marks: Sequence[int | float | str]
    ) -> int:
        k = JobKeys(job_id)
        kept = self._kept if kind in _HEARTBEATS else ""
        arguments = [source, data, repr(time), kept, self._bytes, *marks]
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
        """Entries of these kinds after a number, oldest first; fewer than `count` only where there are no more.

        With `block`, at most so many seconds are waited for the first. There may be more than `count`, by kind.
        """
        k = JobKeys(job_id)
        streams: dict[Any, Any] = {k.history(kind): f"{number}-0" for kind in kinds}
        milliseconds = None if block is None else max(1, int(block * 1000))
        found = await run(self._redis.xread(streams, count=count, block=milliseconds))
        entries: list[HistoryEntry] = []
        complete_to: int | None = None
        for stream, of_kind in found:
            kind = cast("Kind", stream.decode().rsplit(":", 1)[1])
            entries += (_entry(kind, entry_id, fields) for entry_id, fields in of_kind)
            if len(of_kind) == count:  # there may be more of this kind before the last of another
                complete_to = min(complete_to or entries[-1].number, entries[-1].number)
        entries.sort()
        return entries if complete_to is None else [e for e in entries if e.number <= complete_to]

    async def newest(self, job_id: str, kind: Kind, before: int | None, count: int) -> list[HistoryEntry]:
        """The last `count` entries of a kind, of those before a number, newest first."""
        end = "+" if before is None else f"({before}-0"
        found = await run(self._redis.xrevrange(JobKeys(job_id).history(kind), max=end, count=count))
        return [_entry(kind, entry_id, fields) for entry_id, fields in found]

    async def sampled(self, job_id: str, number: int, to: int, most: int) -> list[HistoryEntry]:
        """Entries after one number and up to another, oldest first: of each kind all, or where there are far more,
        about `most` of each source, evenly spread by number, the oldest and the newest of the kind among them.

        Of events, which are told apart by what they say, the oldest `most` and the newest `EVENTS_SAMPLED`.

        Two round trips, and what is read grows with `most` and with the sources, not with the job's length.
        """
        k = JobKeys(job_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hkeys(k.summary)
            for kind in KINDS:
                pipe.xlen(k.history(kind))
                pipe.xrange(k.history(kind), f"({number}-0", f"{to}-0", count=1)
                pipe.xrevrange(k.history(kind), f"{to}-0", f"({number}-0", count=1)
            names, *found = await pipe.execute()
        places: list[_Place] = []
        for kind, length, first, last in zip(KINDS, found[::3], found[1::3], found[2::3], strict=True):
            if first:
                sources = sum(source.split(b" ")[0] == kind.encode() for source in names)
                places += _places(kind, length, _number(first[0][0]), _number(last[0][0]), max(1, sources), most)
        async with self._redis.pipeline(transaction=False) as pipe:
            for place in places:
                if place.back:
                    pipe.xrevrange(k.history(place.kind), f"{place.number}-0", f"({number}-0", count=place.many)
                else:
                    pipe.xrange(k.history(place.kind), f"{place.number}-0", f"{to}-0", count=place.many)
            read = await pipe.execute()
        entries = (_entry(place.kind, *raw) for place, of_place in zip(places, read, strict=True) for raw in of_place)
        return sorted({entry.number: entry for entry in entries}.values())

    async def before_step(self, job_id: str, step: int) -> int:
        """The number after which the entries of this step and later ones are; the last one where there are none yet."""
        k = JobKeys(job_id)
        found = await run(self._redis.zrangebyscore(k.marks, step, "+inf", start=0, num=1))
        return whole_number(found[0], k.marks) - 1 if found else await self.last(job_id)

    async def last_step(self, job_id: str) -> int:
        """The newest step that was measured; 0 before the first."""
        found = await run(self._redis.zrange(JobKeys(job_id).marks, -1, -1, withscores=True))
        return int(found[0][1]) if found and math.isfinite(found[0][1]) else 0

    async def left_out(self, job_id: str) -> dict[str, int]:
        """How many entries of each kind are no longer there; no more would have fitted."""
        found = await run(self._redis.hmget(JobKeys(job_id).summary, [f"left out {kind}" for kind in KINDS]))
        where = f"{JobKeys(job_id).summary} left out"
        return {kind: whole_number(count, f"{where} {kind}") for kind, count in zip(KINDS, found, strict=True)}

    async def last(self, job_id: str) -> int:
        """The newest entry's number; 0 before the first. Where the count of entries is damaged, the streams say it."""
        k = JobKeys(job_id)
        count = if_sound(whole_number, await run(self._redis.hget(k.summary, "entries")), f"{k.summary} entries")
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


class _Place(NamedTuple):
    """Where a kind is read: so many entries from a number on, or back from it."""

    kind: Kind
    number: int
    many: int
    back: bool = False


def _places(kind: Kind, length: int, first: int, last: int, sources: int, most: int) -> list[_Place]:
    many = max(min(most, _FEWEST), min(most, most * _SOURCES // sources))
    enough = EVENTS_SAMPLED if kind == "event" else _SAMPLED_WHOLE * many * sources
    held = min(length, last - first + 1)
    if held <= enough:
        return [_Place(kind, first, held)]
    if kind == "event":
        return [_Place(kind, first, most), _Place(kind, last, EVENTS_SAMPLED, back=True)]
    starts = (first + i * (last - first) // (many - 1) for i in range(many - 1))
    return [*(_Place(kind, start, sources) for start in starts), _Place(kind, last, sources, back=True)]


def _marks(step: StepMetrics) -> tuple[int, float | str, int | str]:
    reward = "" if step.reward_mean is None else step.reward_mean
    return step.step, reward, largest_age(step.ages)


def largest_age(ages: dict[str, AgeMetrics]) -> int | str:
    """Of a token that contributed to the step; '' where none did."""
    return max((int(age) for age, of_age in ages.items() if of_age.tokens > of_age.masked), default="")
