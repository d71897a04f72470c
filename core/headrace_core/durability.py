"""Whether what Redis has answered is on its disk: a step must be, before a checkpoint holds it, or a loss of power
would leave a checkpoint that the ledger knows nothing of; and what a user asked for, before he is told that it is done.

    settle ─► answered, in Redis' memory ─► durable: written through ─► checkpoint
    request that changes something ───────► durable ─────────────────► response

Redis 7.2 has a command for it. The embedded one and others before 7.2 are let write through one command, and with it
all before it: for that long `appendfsync` is `always`, by one client at a time.
"""

from __future__ import annotations

from typing import cast

from redis.asyncio import Redis
from redis.exceptions import LockError, ResponseError

from .keys import WRITTEN_THROUGH
from .redis import answer

LIMIT_SECONDS = 20.0
"""Within the time that a client waits for an answer. A disk that needs longer is not waited for."""


async def durable(redis: Redis, limit: float = LIMIT_SECONDS) -> bool:
    """Write through all that this client was answered. False where the server cannot say so: it keeps no append-only
    file, lets no client change how, or its disk did not come to it within `limit` seconds."""
    try:
        local, _ = await answer(redis.execute_command("WAITAOF", 1, 0, int(limit * 1000)))
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            return False  # it keeps no append-only file
    else:
        return int(local) >= 1
    try:
        return await _written_through(redis, limit)
    except (ResponseError, LockError):
        return False  # not this client's to configure; or it was another's turn before this one's was over


async def _written_through(redis: Redis, limit: float) -> bool:
    """With `always`, a command is answered when it, and all of the file before it, is on the disk."""
    if await _setting(redis, "appendonly") != "yes":
        return False
    if (policy := await _setting(redis, "appendfsync")) != "everysec":
        return policy == "always"  # the operator's wish, either way
    lock = redis.lock(WRITTEN_THROUGH, timeout=2 * LIMIT_SECONDS, blocking_timeout=limit)
    if not await lock.acquire():
        return False
    try:
        await answer(redis.config_set("appendfsync", "always"))
        await answer(lock.reacquire())  # a write, answered when it is on the disk
        return await _setting(redis, "appendfsync") == "always"
    finally:
        await answer(redis.config_set("appendfsync", "everysec"))
        await lock.release()


async def _setting(redis: Redis, name: str) -> str:
    found = cast("dict[str, str]", await answer(redis.config_get(name)))
    return found.get(name, "")
