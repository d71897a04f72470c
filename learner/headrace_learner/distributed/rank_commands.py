"""The commands of a learner's rank 0 to the other ranks: one short Redis stream for each start of the ranks.

    rank 0   send ──► JoinGroup, Load, (Train, Publish, Save)…, WriteModel, Finish     Heartbeat every two seconds
    rank r           ◄── next, in the order in which they were sent

Invariants: a command that was sent twice, because the connection broke, is executed once; a rank that receives neither
a command nor a heartbeat within its limit raises an error; the stream expires by itself.
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

_MIN_LENGTH = 1000
"""Minimum length of the stream: far more commands than are ever unread."""
_EXPIRES_SECONDS = 3600
"""Seconds after the newest command. Rank 0 sends heartbeats far more often."""


class Command(msgspec.Struct, frozen=True, tag=True):
    """Base of all commands. All ranks, rank 0 included, execute them in the same order."""


class JoinGroup(Command, frozen=True, tag=True):
    """Join the process group through the store at this address."""

    host: str
    port: int


class Load(Command, frozen=True, tag=True):
    """Load the checkpoint in this folder."""

    path: str


class Restore(Command, frozen=True, tag=True):
    """Restore the newest snapshot of a version in [least, most]."""

    least: int
    most: int


class Snapshot(Command, frozen=True, tag=True):
    """Take a snapshot of a policy version that is settled."""

    version: int


class Train(Command, frozen=True, tag=True):
    """Update a policy version on these groups, in this order; each rank reads them from the ledger."""

    version: int
    groups: tuple[int, ...]
    max_staleness: int
    """The setting at this version."""
    learning_rate: float
    """The setting at this version (peak)."""


class Publish(Command, frozen=True, tag=True):
    """Gather the shards of the weights that rank 0 publishes."""


class Save(Command, frozen=True, tag=True):
    """Save a checkpoint of a policy version."""

    version: int


class WriteModel(Command, frozen=True, tag=True):
    """Gather the shards of the trained model that rank 0 writes."""


class Heartbeat(Command, frozen=True, tag=True):
    """Rank 0 is alive; nothing to do."""


class Finish(Command, frozen=True, tag=True):
    """The last command."""


_decoder = msgspec.msgpack.Decoder(
    JoinGroup | Load | Restore | Snapshot | Train | Publish | Save | WriteModel | Heartbeat | Finish
)


class CommandStream:
    """The command stream of one start: rank 0 sends, the other ranks read."""

    def __init__(self, redis: Redis, job_id: str, start: str) -> None:
        self._redis = redis
        self._key = JobKeys(job_id).orders(start)
        self._sent = self._received = 0
        """Number of the last command sent, and received."""
        self._after = "0"

    async def send(self, command: Command) -> None:
        """Send a command to the other ranks."""
        self._sent += 1
        entry: dict[Any, Any] = {"number": self._sent, "order": msgspec.msgpack.encode(command)}
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._key, entry, maxlen=_MIN_LENGTH, approximate=True)
            pipe.expire(self._key, _EXPIRES_SECONDS)
            await pipe.execute()

    async def next(self, timeout: float) -> Command:
        """The next command. Raises `TimedOut` after `timeout` seconds without a command or a heartbeat."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            milliseconds = max(1, int(min(left, MAX_BLOCK_SECONDS) * 1000))
            found = await run(self._redis.xread({self._key: self._after}, count=1, block=milliseconds))
            if not found:
                continue
            self._after, entry = found[0][1][0]
            if int(entry[b"number"]) <= self._received:
                continue  # a duplicate: the connection broke, and it was sent again
            self._received = int(entry[b"number"])
            command: Command = _decoder.decode(entry[b"order"])
            if not isinstance(command, Heartbeat):
                return command
            deadline = time.monotonic() + timeout
        raise TimedOut(f"rank 0 of the learner sent no command and no heartbeat for {timeout:.0f} s")
