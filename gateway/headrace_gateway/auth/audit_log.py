"""The audit log: who changed what, when, from which address, and with what result.

    a change   begin ──► the change ──► write ──► answer   begin fails: no change, 503; write fails: the answer stays,
                 │                        │                and the entry is closed later (`close_abandoned`)
                 └ a hash of the changes  └ one of the logs
                   that have begun

Invariants: a change is on record before it is made, and so before it is answered. The log of changes has no requests
that changed nothing, and none of unknown callers. Nothing secret is written (no header, query or body). Refused
requests have logs of their own, one for holders of keys and one for others, so that neither can push changes out of the
log.

The logs are Redis streams with a limited length, not files: all gateways of one Redis share them, and entry ids give
them an order and pages. On a single machine they are in the data folder all the same, in Redis' append-only file.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from redis.asyncio import Redis

from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_records

MAX_PATH = 512

ABANDONED_SECONDS = 3600.0
"""A change that began longer ago and has no end on record never gets one: its gateway died, or could not write it."""

Log = Literal["changes", "refusals", "unauthenticated"]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as the audit log records it."""

    time: float
    """Unix seconds."""
    by: str
    """Name of the caller's key; empty without a valid key."""
    key_id: str
    scope: str
    address: str
    method: str
    path: str
    """Without the query; at most `MAX_PATH` characters."""
    made: str | None
    """Id of what the request created."""
    status: int
    """HTTP status of the answer; 0 for a change that began and whose end is unknown."""
    request_id: str


class Audit:
    """Writes and reads the audit logs."""

    def __init__(self, redis: Redis, max_entries: int) -> None:
        """`max_entries`: approximate maximum length of each log."""
        self._redis = redis
        self._max_entries = max_entries

    async def begin(self, entry: AuditEntry) -> None:
        """Record a change before it is made. If this raises an error of Redis, the change must not be made."""
        await run(self._redis.hset(keys.audit("begun"), entry.request_id, msgspec.json.encode(entry)))

    async def drop(self, request_id: str) -> None:
        """Remove the record of a request that had begun and changed nothing."""
        await run(self._redis.hdel(keys.audit("begun"), request_id))

    async def write(self, entry: AuditEntry) -> None:
        """Append the end of a request to its log: the changes, the refusals (status 400 and above), or the
        unauthenticated (refusals without a valid key)."""
        of: Log = "changes" if entry.status < 400 else "refusals" if entry.key_id else "unauthenticated"
        fields: dict = {"entry": msgspec.json.encode(entry)}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(keys.audit(of), fields, maxlen=self._max_entries, approximate=True)
            pipe.hdel(keys.audit("begun"), entry.request_id)
            await pipe.execute()

    async def close_abandoned(self) -> None:
        """Append, with status 0, the changes that began more than `ABANDONED_SECONDS` ago and have no end."""
        begun = await run(self._redis.hgetall(keys.audit("begun")))
        for request_id, raw in begun.items():
            where = f"{keys.audit('begun')} {request_id.decode(errors='replace')}"
            entries = decode_records([(where, raw)], AuditEntry)
            if entries and time.time() - entries[0].time > ABANDONED_SECONDS:
                await self.write(entries[0])

    async def page(self, of: Log, after: str | None, limit: int) -> tuple[list[tuple[str, AuditEntry]], bool]:
        """([(id, entry), …] older than the entry `after`, newest first; whether there are more)."""
        newest = "+" if after is None else f"({after}"
        records = await run(self._redis.xrevrange(keys.audit(of), max=newest, count=limit + 1))
        entries: list[tuple[str, AuditEntry]] = []
        for place, fields in records[:limit]:
            where = place.decode()
            entries += (
                (where, e)
                for e in decode_records([(f"{keys.audit(of)} {where}", fields.get(b"entry", b""))], AuditEntry)
            )
        return entries, len(records) > limit
