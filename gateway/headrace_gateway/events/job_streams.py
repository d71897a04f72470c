"""Event streams of jobs: one reader of Redis a job and process, however many listen.

                       ┌───────────── a JobStream, while somebody listens ─────────────┐
    history, XREAD ──► │ batch: encoded once a format ──► a Subscriber's few batches │ ──► one write a subscriber
    job, ledger,       │ state: once a second, encoded once, handed out if it changed │
    rewards ─────────► └──────────────────────────────────────────────────────────────┘
    history, in pages ──► a subscriber that joins, or that was too slow, at its own pace
    history, sampled ──► a thinned past, made once for those who come within a short time

Invariants:

* a subscriber gets every entry after the number it asked for, once, in order: it takes up batches before it reads the
  past, of what both hold it sends the past's, and where a batch does not follow what was sent it reads the past again;
* a slow subscriber holds a few batches, which it shares with all others, and then falls back to reading the past;
* a stream ends after the last entry, never before: the job has ended, and a whole second brought nothing new;
* when the server stops, streams end at once, without the `[DONE]` of a job that ended: clients come back and go on.
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
from headrace_core.jobs.job_store import ENDED, Job, JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.logs import get_logger
from headrace_core.redis_access.json_records import log_damaged_once

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
"""Entries that come singly do not wake every subscriber singly."""
_PAGE = 500
_READERS = 8
"""Listeners of a job that read its past at once."""
_PING = b": ping\n\n"
_STOPPING = b": the server stops\n\n"
_LIVE = sse("live", b"{}")
"""Between a thinned past and what comes: whoever wants a picture of the past alone has it."""
_encode = msgspec.json.Encoder().encode
_SAID = {"message": "the stream broke; come back with the id of its last event", "type": "server_error"}
_BROKEN = sse("error", _encode({"error": {**_SAID, "param": None, "code": "stream_broke"}}))


class _Past(NamedTuple):
    """A thinned past, up to a number."""

    to: int
    told: bytes


class JobStreams:
    """All followed jobs of this process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._streams: dict[str, JobStream] = {}
        self._closed = False

    async def listen(
        self, job_id: str, number: int, stream_format: StreamFormat, thin: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Server-sent events of a job from after `number` on to its end; pieces of any length, each of whole events.

        With `thin`, of what is past at most so many of each source.
        """
        if self._closed:
            yield _STOPPING
            return
        stream = self._streams.get(job_id)
        if stream is None or stream.over:
            stream = self._streams[job_id] = JobStream(self._redis, job_id)
        subscriber = stream.joined(stream_format, number)
        try:
            async for piece in stream.pieces(subscriber, stream_format, thin):
                yield piece
        except RedisError as error:  # while the past was read; the answer has begun, and can no longer be an error
            log.warning("an event stream broke", job=job_id, error=str(error))
            yield _BROKEN
        finally:
            last = stream.left(subscriber)
            if last and self._streams.get(job_id) is stream:
                del self._streams[job_id]

    @property
    def followed(self) -> dict[str, int]:
        """Number of subscribers, by job."""
        return {job_id: stream.subscribers for job_id, stream in self._streams.items()}

    def close(self) -> None:
        """End every stream; none begins afterwards."""
        self._closed = True
        for stream in self._streams.values():
            stream.end(_STOPPING)


class JobStream:
    """One job, followed from its first subscriber's coming to its last one's leaving."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self._jobs, self._ledger, self._job_id = JobStore(redis), Ledger(redis, job_id), job_id
        self._history = self._jobs.history
        self._listeners: set[Subscriber] = set()
        self._state = b""
        self._position = 0
        """Everything up to here was handed to the subscribers of the time."""
        self._pasts: dict[tuple[int, int, int], _Past] = {}
        """The last one that was made."""
        self._thinning = asyncio.Lock()
        self._readers = asyncio.Semaphore(_READERS)
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._follow_safely(), name=f"follow {job_id}")

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return self._task.done()

    @property
    def subscribers(self) -> int:
        return len(self._listeners)

    def joined(self, stream_format: StreamFormat, number: int) -> Subscriber:
        """A new subscriber, who is handed everything from now on."""
        subscriber = Subscriber(stream_format, number)
        subscriber.state(self._state)
        self._listeners.add(subscriber)
        return subscriber

    def left(self, subscriber: Subscriber) -> bool:
        """Whether that was the last one; then nothing is followed any more."""
        self._listeners.discard(subscriber)
        if not self._listeners:
            self._task.cancel()
        return not self._listeners

    def end(self, last: bytes) -> None:
        """Let every subscriber send what it has, and `last`."""
        for subscriber in self._listeners:
            subscriber.end(last)
        self._begun.set()

    # ── the job's side ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow_safely(self) -> None:
        """Where it fails, whatever the reason, its subscribers are told; their clients come back, to a new stream."""
        try:
            await self._follow()
        except Exception:
            log.exception("the event streams of a job broke", job=self._job_id, subscribers=self.subscribers)
            self.end(_BROKEN)

    async def _follow(self) -> None:
        self._position = await self._history.last(self._job_id)
        job = await self._send_state()
        self._begun.set()
        stated = pinged = time.monotonic()
        while True:
            found = await self._history.after(self._job_id, self._position, _PAGE, block=_QUIET_SECONDS)
            if found:
                batch = Batch(self._job_id, self._position, found)
                self._position = batch.last
                for subscriber in self._listeners:
                    subscriber.hand(batch)
            elif job.status in ENDED:
                break
            now = time.monotonic()
            if now - stated >= _STATE_SECONDS:
                job, stated = await self._send_state(), now
            if now - pinged >= PING_SECONDS:
                pinged = now
                for subscriber in self._listeners:
                    subscriber.ping(_PING)
            if 0 < len(found) < _PAGE:
                await asyncio.sleep(_GATHER_SECONDS)
        await self._send_state()
        for subscriber in self._listeners:
            subscriber.end(subscriber.stream_format.done)

    async def _account(self) -> dict[str, Any] | None:
        """None of a ledger that is damaged."""
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
            for subscriber in self._listeners:
                subscriber.state(state)
        return job

    # ── a subscriber's side ──────────────────────────────────────────────────────────────────────────────────────────

    async def pieces(
        self, subscriber: Subscriber, stream_format: StreamFormat, thin: int | None
    ) -> AsyncGenerator[bytes]:
        """Everything that the subscriber is to send."""
        await self._begun.wait()
        yield subscriber.newest_state()
        if thin is not None and subscriber.number < self._position:
            past = await self._downsampled(stream_format, subscriber.number, thin)
            subscriber.number = past.to
            yield past.told
        async for piece in self._past(subscriber, stream_format, self._position):
            yield piece
        if thin is not None:
            yield _LIVE
        while True:
            await subscriber.wait()
            while (to := subscriber.missed_to) is not None:
                async for piece in self._past(subscriber, stream_format, to):
                    yield piece
            ended = subscriber.ended
            yield subscriber.take()
            if ended:
                return

    async def _past(self, subscriber: Subscriber, stream_format: StreamFormat, to: int) -> AsyncGenerator[bytes]:
        """What was recorded after the subscriber's number, at least up to `to`."""
        while subscriber.number < to:
            found, subscriber.number = await self._page(stream_format, subscriber.number, to)
            yield encode_entries(stream_format, self._job_id, found)

    async def _page(self, stream_format: StreamFormat, number: int, to: int) -> tuple[list[HistoryEntry], int]:
        """(entries after `number`, the number up to which these are all): at least `to` where there are no more."""
        async with self._readers:
            found = await self._history.after(self._job_id, number, _PAGE, stream_format.kinds)
        complete = [] if len(found) >= _PAGE else [to]
        return found, max([*complete, *(e.number for e in found[-1:])])

    async def _downsampled(self, stream_format: StreamFormat, number: int, most: int) -> _Past:
        """The past after `number`, made once for all who come within `_PAGE` entries."""
        wanted = (id(stream_format), number, most)
        async with self._thinning:
            past = self._pasts.get(wanted)
            if past is None or past.to < self._position - _PAGE:
                to = self._position
                async with self._readers:
                    found = await self._history.sampled(self._job_id, number, to, most)
                past = _Past(to, encode_entries(stream_format, self._job_id, downsample(found, most)))
                self._pasts = {wanted: past}
            return past
