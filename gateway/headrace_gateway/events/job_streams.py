"""Event streams of jobs: in each process one reader of Redis per job, however many subscribers there are.

                       ┌───────────── a JobStream, while it has subscribers ───────────┐
    history, XREAD ──► │ batch: encoded once a format ──► a Subscriber's few batches │ ──► one write a subscriber
    job, ledger,       │ state: once a second, encoded once, handed out if it changed │
    rewards ─────────► └──────────────────────────────────────────────────────────────┘
    history, in pages ──► a subscriber that is new, or was too slow, at its own pace
    history, sampled ──► a downsampled past, computed once for subscribers that come within a short time

Invariants:

* a subscriber gets every entry after the number that it asked for, once and in order: it collects batches before it
  reads
  the past, skips entries of a batch that the past had already, and reads the past again if a batch does not follow
  directly what it has sent;
* a slow subscriber holds a few batches, which it shares with the others, and then falls back to reading the past;
* a stream ends only after the last entry: when the job has ended, and a whole second brought no new entry;
* when the server stops, streams end at once, without the `[DONE]` of a job that ended: clients reconnect and continue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.errors import Damaged
from headrace_core.jobs.history import HistoryEntry
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.logs import get_logger
from headrace_core.redis_access.json_records import log_damaged_once
from headrace_core.types.job import ENDED, Job

from ..views.eta import estimated_finish
from ..views.objects import job_object
from ..views.reward_summary import summary
from .sse_response import PING_SECONDS
from .stream_formats import StreamFormat, downsample, sse
from .subscriber import Batch, Subscriber, encode_entries

log = get_logger(__name__)

_QUIET_SECONDS = 1.0
_STATE_SECONDS = 1.0
_GATHER_SECONDS = 0.2
"""Entries are gathered for this long, so that not every single entry wakes all subscribers."""
_PAGE = 500
_READERS = 8
"""Subscribers of a job that may read its past at the same time."""
_PING = b": ping\n\n"
_STOPPING = b": the server stops\n\n"
_LIVE = sse("live", b"{}")
"""Sent between a downsampled past and live entries, for clients that only want to draw the past."""
_encode = msgspec.json.Encoder().encode
_BROKEN_ERROR = {"message": "the stream broke; come back with the id of its last event", "type": "server_error"}
_BROKEN = sse("error", _encode({"error": {**_BROKEN_ERROR, "param": None, "code": "stream_broke"}}))


class _DownsampledPast(NamedTuple):
    """A downsampled past up to the entry number `to`, encoded."""

    to: int
    encoded: bytes


class JobStreams:
    """The streams of all jobs that have subscribers in this process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._streams: dict[str, JobStream] = {}
        self._closed = False

    async def stream_events(
        self, job_id: str, number: int, stream_format: StreamFormat, thin: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Server-sent events of a job after the entry `number`, until the job ends. Each piece has whole events.

        `thin`: downsample the past to at most this many entries of each source.
        """
        if self._closed:
            yield _STOPPING
            return
        stream = self._streams.get(job_id)
        if stream is None or stream.ended:
            stream = self._streams[job_id] = JobStream(self._redis, job_id)
        subscriber = stream.add_subscriber(stream_format, number)
        try:
            async for piece in stream.pieces(subscriber, stream_format, thin):
                yield piece
        except (
            RedisError
        ) as error:  # while the past was read: the response has begun, so its status can no longer be an error
            log.warning("an event stream broke", job=job_id, error=str(error))
            yield _BROKEN
        finally:
            last = stream.remove_subscriber(subscriber)
            if last and self._streams.get(job_id) is stream:
                del self._streams[job_id]

    @property
    def followed(self) -> dict[str, int]:
        """Number of subscribers, by job."""
        return {job_id: stream.subscribers for job_id, stream in self._streams.items()}

    def close(self) -> None:
        """End every stream, and start no more."""
        self._closed = True
        for stream in self._streams.values():
            stream.end(_STOPPING)


class JobStream:
    """Follows one job, from its first subscriber to its last."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._jobs, self._ledger, self._job_id = JobStore(redis), Ledger(redis, job_id), job_id
        self._history = self._jobs.history
        self._subscribers: set[Subscriber] = set()
        self._state = b""
        self._position = 0
        """Number of the last entry that was passed to the subscribers."""
        self._downsampled_past: dict[tuple[int, int, int], _DownsampledPast] = {}
        """The last downsampled past, by (format, first number, limit)."""
        self._thinning = asyncio.Lock()
        self._readers = asyncio.Semaphore(_READERS)
        self._started = asyncio.Event()
        self._task = asyncio.create_task(self._follow_safely(), name=f"follow {job_id}")

    @property
    def ended(self) -> bool:
        """Whether the stream has ended."""
        return self._task.done()

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def add_subscriber(self, stream_format: StreamFormat, number: int) -> Subscriber:
        """A new subscriber, which gets every batch and state from now on."""
        subscriber = Subscriber(stream_format, number)
        subscriber.state(self._state)
        self._subscribers.add(subscriber)
        return subscriber

    def remove_subscriber(self, subscriber: Subscriber) -> bool:
        """Remove a subscriber. If it was the last one, stops following the job and returns True."""
        self._subscribers.discard(subscriber)
        if not self._subscribers:
            self._task.cancel()
        return not self._subscribers

    def end(self, last: bytes) -> None:
        """End all subscribers: each sends what it still has, and then `last`."""
        for subscriber in self._subscribers:
            subscriber.end(last)
        self._started.set()

    # ── the job's side ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow_safely(self) -> None:
        """Follow the job. On any error, the subscribers get an error event; their clients then reconnect to a new
        stream."""
        try:
            await self._follow()
        except Exception:
            log.exception("the event streams of a job broke", job=self._job_id, subscribers=self.subscribers)
            self.end(_BROKEN)

    async def _follow(self) -> None:
        self._position = await self._history.last(self._job_id)
        job = await self._send_state()
        self._started.set()
        stated = pinged = time.monotonic()
        while True:
            entries = await self._history.after(self._job_id, self._position, _PAGE, block=_QUIET_SECONDS)
            if entries:
                batch = Batch(self._job_id, self._position, entries)
                self._position = batch.last
                for subscriber in self._subscribers:
                    subscriber.add_batch(batch)
            elif job.status in ENDED:
                break
            now = time.monotonic()
            if now - stated >= _STATE_SECONDS:
                job, stated = await self._send_state(), now
            if now - pinged >= PING_SECONDS:
                pinged = now
                for subscriber in self._subscribers:
                    subscriber.ping(_PING)
            if 0 < len(entries) < _PAGE:
                await asyncio.sleep(_GATHER_SECONDS)
        await self._send_state()
        for subscriber in self._subscribers:
            subscriber.end(subscriber.stream_format.done)

    async def _account(self) -> dict[str, Any] | None:
        """The ledger's counts; None if the ledger is damaged."""
        try:
            return (await self._ledger.counts()).as_dict()
        except Damaged as error:
            log_damaged_once(error)
            return None

    async def _send_state(self) -> Job:
        job = await self._jobs.get(self._job_id)
        body = {
            "job": job_object(job, estimated_finish(job)),
            "ledger": await self._account(),
            "reward": summary(await self._jobs.rewards(self._job_id)),
        }
        state = sse("state", _encode(body))
        if state != self._state:
            self._state = state
            for subscriber in self._subscribers:
                subscriber.state(state)
        return job

    # ── a subscriber's side ──────────────────────────────────────────────────────────────────────────────────────────

    async def pieces(
        self, subscriber: Subscriber, stream_format: StreamFormat, thin: int | None
    ) -> AsyncGenerator[bytes]:
        """Everything to send to a subscriber: the state, the past, then live batches."""
        await self._started.wait()
        yield subscriber.newest_state()
        if thin is not None and subscriber.number < self._position:
            past = await self._downsampled(stream_format, subscriber.number, thin)
            subscriber.number = past.to
            yield past.encoded
        async for piece in self._past(subscriber, stream_format, self._position):
            yield piece
        if thin is not None:
            yield _LIVE
        while True:
            await subscriber.wait()
            while (to := subscriber.gap_end) is not None:
                async for piece in self._past(subscriber, stream_format, to):
                    yield piece
            ended = subscriber.ended
            yield subscriber.take()
            if ended:
                return

    async def _past(self, subscriber: Subscriber, stream_format: StreamFormat, to: int) -> AsyncGenerator[bytes]:
        """The entries after the subscriber's number, at least up to `to`."""
        while subscriber.number < to:
            entries, subscriber.number = await self._page(stream_format, subscriber.number, to)
            yield encode_entries(stream_format, self._job_id, entries)

    async def _page(self, stream_format: StreamFormat, number: int, to: int) -> tuple[list[HistoryEntry], int]:
        """(entries after `number`, the number up to which they are complete): at least `to` if there are no more."""
        async with self._readers:
            entries = await self._history.after(self._job_id, number, _PAGE, stream_format.kinds)
        complete = [] if len(entries) >= _PAGE else [to]
        return entries, max([*complete, *(e.number for e in entries[-1:])])

    async def _downsampled(self, stream_format: StreamFormat, number: int, most: int) -> _DownsampledPast:
        """The downsampled past after `number`, shared by subscribers that come within `_PAGE` entries."""
        wanted = (id(stream_format), number, most)
        async with self._thinning:
            past = self._downsampled_past.get(wanted)
            if past is None or past.to < self._position - _PAGE:
                to = self._position
                async with self._readers:
                    entries = await self._history.sampled(self._job_id, number, to, most)
                past = _DownsampledPast(to, encode_entries(stream_format, self._job_id, downsample(entries, most)))
                self._downsampled_past = {wanted: past}
            return past
