"""What rank 0 of a learner tells the other ranks: one short Redis stream for each start of them.

    rank 0   give ──► Meet, Load, (Train, Publish, Save)…, WriteModel, End       Present, every two seconds
    rank r          ◄── next, in the order they were given

Invariants: an order counts once, also where the connection broke and it was sent twice; a rank that hears neither an
order nor a sign of life within its limit says so; the stream expires by itself.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from redis.asyncio import Redis

from headrace_core.errors import TimedOut
from headrace_core.ledger.ledger import MAX_BLOCK_SECONDS
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys

_KEPT = 1000
"""Orders kept in the stream, at least: far more than are ever unread."""
_EXPIRES = 3600
"""Seconds after the newest order. Rank 0 gives a sign of life far more often."""


class Command(msgspec.Struct, frozen=True, tag=True):
    """Base of all. What is to be done is done by all ranks, rank 0 included, at the same point of their sequence."""


class JoinGroup(Command, frozen=True, tag=True):
    """Join the process group by the store at this address."""

    host: str
    port: int


class Load(Command, frozen=True, tag=True):
    """The command to load a checkpoint."""

    path: str


class Restore(Command, frozen=True, tag=True):
    """Go back to the newest snapshot of a version in [least, most]."""

    least: int
    most: int


class Snapshot(Command, frozen=True, tag=True):
    """Take a snapshot of a policy version, which is settled."""

    version: int


class Train(Command, frozen=True, tag=True):
    """Update a policy version by these groups, in this order; the ledger has them."""

    version: int
    groups: tuple[int, ...]
    max_staleness: int
    """In force at this version, as is the next."""
    learning_rate: float


class Publish(Command, frozen=True, tag=True):
    """Give shards for weights that rank 0 publishes."""


class Save(Command, frozen=True, tag=True):
    """Save a checkpoint of a policy version."""

    version: int


class WriteModel(Command, frozen=True, tag=True):
    """Give shards for the trained model that rank 0 writes."""


class Heartbeat(Command, frozen=True, tag=True):
    """Nothing to do: rank 0 is alive."""


class Finish(Command, frozen=True, tag=True):
    """No more orders."""


_decoder = msgspec.msgpack.Decoder(
    JoinGroup | Load | Restore | Snapshot | Train | Publish | Save | WriteModel | Heartbeat | Finish
)


class CommandStream:
    """The stream of one start, given by rank 0 or heard by another rank."""

    def __init__(self, redis: Redis, job_id: str, start: str) -> None:
        self._redis = redis
        self._key = JobKeys(job_id).orders(start)
        self._given = self._heard = 0
        self._after = "0"

    async def give(self, order: Command) -> None:
        """Tell the other ranks."""
        self._given += 1
        entry: dict[Any, Any] = {"number": self._given, "order": msgspec.msgpack.encode(order)}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._key, entry, maxlen=_KEPT, approximate=True)
            pipe.expire(self._key, _EXPIRES)
            await pipe.execute()

    async def next(self, timeout: float) -> Command:
        """The next thing to do. Raises `TimedOut` after `timeout` seconds without an order or a sign of life."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            milliseconds = max(1, int(min(left, MAX_BLOCK_SECONDS) * 1000))
            found = await run(self._redis.xread({self._key: self._after}, count=1, block=milliseconds))
            if not found:
                continue
            self._after, entry = found[0][1][0]
            if int(entry[b"number"]) <= self._heard:
                continue
            self._heard = int(entry[b"number"])
            order: Command = _decoder.decode(entry[b"order"])
            if not isinstance(order, Heartbeat):
                return order
            until = time.monotonic() + timeout
        raise TimedOut(f"rank 0 of the learner sent no command and no heartbeat for {timeout:.0f} s")
