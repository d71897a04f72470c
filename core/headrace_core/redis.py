"""How every part reaches Redis: one way to connect, one way to await."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, RedisError

from .errors import Unavailable

_MOST_CONNECTIONS = 4096
"""Of a process. The client's own 100 is soon reached by waiting calls, and the next one fails, rather than wait."""


def connect(url: str) -> Redis:
    """A client for `redis://…` or `unix:///path`. Answers are bytes.

    A command fails after 30 s without an answer. When the connection breaks it is sent again, for about three seconds:
    a Redis that restarts is waited for. The ledger's scripts count such a call once.
    """
    again = Retry(ExponentialBackoff(cap=1.0, base=0.1), retries=5, supported_errors=(ConnectionError,))
    return Redis.from_url(
        url,
        socket_connect_timeout=5,
        socket_timeout=30,
        health_check_interval=15,
        retry=again,
        max_connections=_MOST_CONNECTIONS,
    )


async def ping(redis: Redis) -> None:
    """Raises `Unavailable` when Redis does not answer."""
    try:
        await answer(redis.ping())
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {error}") from error


async def answer(value: Awaitable[Any] | Any) -> Any:
    """Await a command. redis-py types one client for sync and async use; in Headrace it is always async."""
    return await cast("Awaitable[Any]", value)
