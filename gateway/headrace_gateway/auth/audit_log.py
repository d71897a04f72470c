"""The audit log: who did what, when, from where, to what, and with what end.

    a change   begin ──► the act ──► end ──► answer        begin fails: no act, 503; end fails: the answer is the act's,
                 │                    │                    and the entry is settled later
                 └ a hash of what has └ one of the logs
                   begun

Invariants: a change is on record before it is made, and so before it is answered; what changed nothing, and what nobody
known asked for, is not among the changes; nothing secret is written (no header, no query, no body). What was refused to
holders of keys, and what to others, are logs of their own, so that neither pushes out what was done.

Redis streams, bounded, and not a file: gateways that serve one Redis keep one log, ids give it an order and pages, and
in a service on one machine it lies in the data folder all the same, in Redis' append-only file.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from redis.asyncio import Redis

from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_records

LONGEST_PATH = 512

SETTLED_SECONDS = 3600.0
"""What has begun so long ago, and has not ended, never will: its gateway died, or could not write how it ended."""

Log = Literal["changes", "refusals", "unauthenticated"]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as the audit log records it."""

    time: float
    """Unix seconds."""
    by: str
    """Name of the caller's key; empty where none was valid."""
    key_id: str
    scope: str
    address: str
    method: str
    path: str
    """Without its query, and at most `LONGEST_PATH` characters of it."""
    made: str | None
    """Id of what the request made."""
    status: int
    """Of the answer; 0 where the change has begun, and how it ended is not known."""
    request_id: str


class Audit:
    """Appends to the log, and reads it."""

    def __init__(self, redis: Redis, most: int) -> None:
        """Of each log, about `most` entries are kept."""
        self._redis = redis
        self._most = most

    async def begin(self, entry: AuditEntry) -> None:
        """Note a change before it is made. Raises what Redis does: then it must not be made."""
        await run(self._redis.hset(keys.audit("begun"), entry.request_id, msgspec.json.encode(entry)))

    async def drop(self, request_id: str) -> None:
        """What had begun has changed nothing."""
        await run(self._redis.hdel(keys.audit("begun"), request_id))

    async def write(self, entry: AuditEntry) -> None:
        """Append how a request ended: from status 400 on to the refusals, without a key to those of nobody known."""
        of: Log = "changes" if entry.status < 400 else "refusals" if entry.key_id else "unauthenticated"
        fields: dict = {"entry": msgspec.json.encode(entry)}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(keys.audit(of), fields, maxlen=self._most, approximate=True)
            pipe.hdel(keys.audit("begun"), entry.request_id)
            await pipe.execute()

    async def settle(self) -> None:
        """Append, with status 0, what began long ago and has not ended."""
        begun = await run(self._redis.hgetall(keys.audit("begun")))
        for request_id, raw in begun.items():
            where = f"{keys.audit('begun')} {request_id.decode(errors='replace')}"
            found = decode_records([(where, raw)], AuditEntry)
            if found and time.time() - found[0].time > SETTLED_SECONDS:
                await self.write(found[0])

    async def page(self, of: Log, after: str | None, limit: int) -> tuple[list[tuple[str, AuditEntry]], bool]:
        """([(id, entry), …] newest first, older than the one of id `after`; whether there are more)."""
        newest = "+" if after is None else f"({after}"
        found = await run(self._redis.xrevrange(keys.audit(of), max=newest, count=limit + 1))
        entries: list[tuple[str, AuditEntry]] = []
        for place, fields in found[:limit]:
            where = place.decode()
            entries += (
                (where, e)
                for e in decode_records([(f"{keys.audit(of)} {where}", fields.get(b"entry", b""))], AuditEntry)
            )
        return entries, len(found) > limit
