"""Whether what Redis has answered is on its disk: a step must be, before a checkpoint holds it, or a loss of power
would leave a checkpoint that the ledger knows nothing of; and what a user asked for, before they are told that it is
done.

    settle ─► answered, in Redis' memory ─► durable: written through ─► checkpoint
    request that changes something ───────► durable ─────────────────► response

Redis is let write through one command, and with it all before it: for that long `appendfsync` is `always`, by one
client at a time. Where it lets no client change that, `WAITAOF` is asked, which takes up to a second, and which Valkey
and Redis before 8.0 answer too soon: for a second after each write-through, they take every write for written through
(https://github.com/redis/redis/pull/13793; decision 0038). Their answer is not taken.
"""

from __future__ import annotations

from typing import cast

from redis.asyncio import Redis
from redis.exceptions import LockError, ResponseError

from .client import acquired, run
from .keys import WRITTEN_THROUGH

LIMIT_SECONDS = 20.0
"""Within the time that a client waits for an answer. A disk that needs longer is not waited for."""
_TRUSTED_MAJOR = 8
"""Of Redis: the first version whose `WAITAOF` is right."""


async def wait_until_durable(redis: Redis, limit: float = LIMIT_SECONDS) -> bool:
    """Write through all that this client was answered. False where the server cannot say so: it keeps no append-only
    file, lets no client change how, or its disk did not come to it within `limit` seconds."""
    try:
        appending = await _setting(redis, "appendonly")
    except ResponseError:  # not this client's to ask
        return await _waited_for(redis, limit)
    if appending != "yes":
        return False
    try:
        return await _written_through(redis, limit)
    except LockError:
        return False  # it was another's turn before this one's was over
    except ResponseError:  # not this client's to configure
        return await _waited_for(redis, limit)


async def _written_through(redis: Redis, limit: float) -> bool:
    """With `always`, a command is answered when it, and all of the file before it, is on the disk."""
    if (policy := await _setting(redis, "appendfsync")) != "everysec":
        return policy == "always"  # the operator's wish, either way
    lock = redis.lock(WRITTEN_THROUGH, timeout=2 * LIMIT_SECONDS, blocking_timeout=limit)
    if not await acquired(lock):
        return False
    try:
        await run(redis.config_set("appendfsync", "always"))
        await run(lock.reacquire())  # a write, answered when it is on the disk
        return await _setting(redis, "appendfsync") == "always"
    finally:
        try:
            await run(redis.config_set("appendfsync", "everysec"))
        finally:
            await lock.release()


async def _waited_for(redis: Redis, limit: float) -> bool:
    try:
        server = cast("dict[str, object]", await run(redis.info("server")))
        if server.get("server_name") == "valkey" or int(str(server["redis_version"]).split(".")[0]) < _TRUSTED_MAJOR:
            return False
        local, _ = await run(redis.execute_command("WAITAOF", 1, 0, int(limit * 1000)))
    except ResponseError:  # it keeps no append-only file, or has no such command for this client
        return False
    return int(local) >= 1


async def _setting(redis: Redis, name: str) -> str:
    found = cast("dict[str, str]", await run(redis.config_get(name)))
    return found.get(name, "")
