"""Waits until Redis has synced its acknowledged writes to disk.

    settle ─► acknowledged, in Redis' memory ─► durable: on disk ─► checkpoint
    request that changes something ───────────► durable ─────────► response

A step must be durable before a checkpoint contains it, or a power failure could leave a checkpoint that the ledger
knows nothing of. A change that a user requested must be durable before the response says that it is done.

To sync, `appendfsync` is set to `always` during one write, by one client at a time; that write is acknowledged when it
and everything before it are on disk. If Redis does not permit clients to change its configuration, `WAITAOF` is used
instead, which takes up to a second. Valkey, and Redis before 8.0, answer `WAITAOF` too early: for a second after each
fsync they consider every write synced (https://github.com/redis/redis/pull/13793; decision 0038). Their answer is not
trusted.
"""

from __future__ import annotations

from typing import cast

from redis.asyncio import Redis
from redis.exceptions import LockError, ResponseError

from .client import acquired, run
from .keys import WRITTEN_THROUGH

LIMIT_SECONDS = 20.0
"""Longest wait for the disk; less than the time a client waits for an answer."""
_TRUSTED_MAJOR = 8
"""First major version of Redis whose `WAITAOF` is correct."""


async def wait_until_durable(redis: Redis, limit: float = LIMIT_SECONDS) -> bool:
    """Wait until every write that was acknowledged to this client is on Redis' disk.

    Returns False if that cannot be known: the server has no append-only file, permits neither way of syncing, or did
    not sync within `limit` seconds.
    """
    try:
        appending = await _setting(redis, "appendonly")
    except ResponseError:  # this client may not read the configuration
        return await _confirmed_by_waitaof(redis, limit)
    if appending != "yes":
        return False
    try:
        return await _synced_by_write(redis, limit)
    except LockError:
        return False  # the lock expired, so that another client may have changed the policy back too early
    except ResponseError:  # this client may not change the configuration
        return await _confirmed_by_waitaof(redis, limit)


async def _synced_by_write(redis: Redis, limit: float) -> bool:
    """Sync by a write under the policy `always`, which is acknowledged when the whole file up to it is on disk."""
    if (policy := await _setting(redis, "appendfsync")) != "everysec":
        return policy == "always"  # the operator chose `always` (synced already) or `no` (never to be synced)
    lock = redis.lock(WRITTEN_THROUGH, timeout=2 * LIMIT_SECONDS, blocking_timeout=limit)
    if not await acquired(lock):
        return False
    try:
        await run(redis.config_set("appendfsync", "always"))
        await run(lock.reacquire())  # any write would do; it is acknowledged when it is on disk
        return await _setting(redis, "appendfsync") == "always"
    finally:
        try:
            await run(redis.config_set("appendfsync", "everysec"))
        finally:
            await lock.release()


async def _confirmed_by_waitaof(redis: Redis, limit: float) -> bool:
    """Whether a trusted `WAITAOF` confirmed the sync within `limit` seconds."""
    try:
        server = cast("dict[str, object]", await run(redis.info("server")))
        if server.get("server_name") == "valkey" or int(str(server["redis_version"]).split(".")[0]) < _TRUSTED_MAJOR:
            return False
        local, _ = await run(redis.execute_command("WAITAOF", 1, 0, int(limit * 1000)))
    except ResponseError:  # there is no append-only file, or this client may not use the command
        return False
    return int(local) >= 1


async def _setting(redis: Redis, name: str) -> str:
    found = cast("dict[str, str]", await run(redis.config_get(name)))
    return found.get(name, "")
