"""The audit log: who did what, when, from where, to what, and with what end.

Invariants: a change is written down before it is answered; nothing secret is written (no header, no query, no body);
refusals have a log of their own, so that nobody can push out what was done by being refused often enough.

Two Redis streams, bounded, and not a file: gateways that serve one Redis keep one log, ids give it an order and pages,
and in a service on one machine it lies in the data folder all the same, in Redis' append-only file.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from redis.asyncio import Redis

from headrace_core import keys
from headrace_core.records import readable
from headrace_core.redis import answer

LONGEST_PATH = 512

Log = Literal["changes", "refusals"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

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
    request_id: str


class Audit:
    """Appends to the log, and reads it."""

    def __init__(self, redis: Redis, most: int) -> None:
        """Of each log, about `most` entries are kept."""
        self._redis = redis
        self._most = most

    async def write(self, entry: Entry) -> None:
        """Append: to the refusals from status 400 on."""
        of: Log = "changes" if entry.status < 400 else "refusals"
        fields: dict = {"entry": msgspec.json.encode(entry)}
        await answer(self._redis.xadd(keys.audit(of), fields, maxlen=self._most, approximate=True))

    async def page(self, of: Log, after: str | None, limit: int) -> tuple[list[tuple[str, Entry]], bool]:
        """([(id, entry), …] newest first, older than the one of id `after`; whether there are more)."""
        newest = "+" if after is None else f"({after}"
        found = await answer(self._redis.xrevrange(keys.audit(of), max=newest, count=limit + 1))
        entries: list[tuple[str, Entry]] = []
        for place, fields in found[:limit]:
            where = place.decode()
            entries += ((where, e) for e in readable([(f"{keys.audit(of)} {where}", fields[b"entry"])], Entry))
        return entries, len(found) > limit
