"""How every part reaches Redis: one way to connect, one way to await, and what is waited for.

    a command ─► Redis ─► answer
        ▲          └──► away, stopped, loading, read-only, busy, full ─► wait, 0.05 s … 2 s, jittered ─┐
        └──────────────────────────── again, until `wait` seconds have passed ◄────────────────────────┘

Invariants: a command ends with an answer, or with an error after `wait` seconds and one answer's limit at most; one
that was not answered may have been carried out, so every command is one that may arrive twice (decision 0009); no text
that leaves this module holds a password.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

from ..backoff import jittered_delay_after
from ..concurrency import taken_or_undone
from ..errors import DiskFull, RedisFull, Unavailable
from ..logs import get_logger
from ..redaction import conceal_password
from ..redis_address import masked

WAIT_SECONDS = 120.0
"""For which a worker waits where nothing else is said: the setting redis_wait."""
GATEWAY_WAIT_SECONDS = 2.0
"""A request is answered rather than kept waiting; its client comes again."""
GATEWAY_ANSWER_SECONDS = 5.0
RETRY_AFTER_SECONDS = 5
_ANSWER_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_MOST_CONNECTIONS = 4096
"""Of a process. The client's own 100 is soon reached by waiting calls, and the next one fails, rather than wait."""
_PASSING = re.compile(r"(?:^|: -)(LOADING|READONLY|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|OOM)\b")
"""Answers of a server that will take the command later: it starts, changes its role, runs a script, is full. Before
Redis 7, those to a command within a script stand in the middle of the text."""
_LASTING = (AuthenticationError, AuthorizationError, MaxConnectionsError, ssl.SSLCertVerificationError)
_Answer = TypeVar("_Answer")
_until: ContextVar[float | None] = ContextVar("until", default=None)
"""When the command that is being sent is given up: connecting for it has no time of its own."""
log = get_logger(__name__)


def connect(url: str, wait: float = WAIT_SECONDS, answer_within: float = _ANSWER_SECONDS) -> Redis:
    """A client for `redis://…`, `rediss://…` or `unix:///path`. Answers are bytes.

    A try fails after `answer_within` seconds without an answer; while Redis is away, or says that it will take the
    command later, it is sent again for `wait` seconds. Then the last error is raised: redis-py's own, `RedisFull` where
    Redis is at its memory limit, `DiskFull` where it cannot write its append-only file.
    """
    conceal_password(url)
    return Redis.from_url(
        url,
        socket_connect_timeout=min(5.0, answer_within),
        socket_timeout=answer_within,
        health_check_interval=15,
        retry=_RetryUntil(wait),
        max_connections=_MOST_CONNECTIONS,
    )


def connect_for_requests(url: str) -> Redis:
    """A client whose commands end within seconds: of a gateway, whose callers can come again."""
    return connect(url, GATEWAY_WAIT_SECONDS, GATEWAY_ANSWER_SECONDS)


async def ping(redis: Redis) -> None:
    """Raises `Unavailable` when Redis does not answer."""
    try:
        await run(redis.ping())
    except (RedisError, OSError) as error:
        raise unavailable(error) from error


async def run(value: Awaitable[Any] | Any) -> Any:
    """Await a command. redis-py types one client for sync and async use; in Headrace it is always async."""
    return await cast("Awaitable[Any]", value)


async def acquired(lock: Lock) -> bool:
    """Whether the lock is the caller's now, within its own time to wait. A caller that is cancelled leaves it free."""

    async def free(held: bool) -> None:
        if held:
            await lock.release()

    return await taken_or_undone(lock.acquire(), free)


def unavailable(error: Exception) -> Unavailable:
    """What a caller is told of a Redis that was not reached in time."""
    return Unavailable(f"Redis does not answer: {masked(str(error))}", retry_after=RETRY_AFTER_SECONDS)


class _RetryUntil(Retry):
    """Sends a command again for `wait` seconds; the connection that failed is closed each time."""

    def __init__(self, wait: float) -> None:
        super().__init__(NoBackoff(), retries=0)
        self._wait = wait

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[_Answer]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> _Answer:
        """See `Retry`. Within another call it keeps to that one's time."""
        began, within = time.monotonic(), _until.get()
        until = began + self._wait if within is None else within
        token, failures = _until.set(until), 0
        try:
            while True:
                try:
                    result = await do()
                except (RedisError, OSError) as error:
                    if not is_transient(error) or (is_retryable and not is_retryable(error)):
                        raise
                    failures += 1
                    await (fail(error, failures) if with_failure_count else fail(error))
                    await _pause(error, failures, until, self._wait)
                else:
                    if within is None and failures > 1:
                        log.warning("Redis answers again", after_seconds=round(time.monotonic() - began, 1))
                    return result
        finally:
            _until.reset(token)


async def _pause(error: Exception, failures: int, until: float, wait: float) -> None:
    """Before the next try; raises the error, by its name, where there is no time for one."""
    left = until - time.monotonic()
    if left <= 0:
        raise _named(error, wait) from error
    if failures == 2:
        log.warning("Redis is waited for", seconds=round(left, 1), error=masked(str(error)))
    await asyncio.sleep(min(left, jittered_delay_after(failures, _FIRST_PAUSE, _LONGEST_PAUSE)))


def is_transient(error: Exception) -> bool:
    """Whether the same command may be answered later: not a wrong password, certificate or command."""
    wrapped = error.__cause__ or error.__context__  # redis-py makes what it meets while it connects a ConnectionError
    if isinstance(error, _LASTING) or isinstance(wrapped, _LASTING):
        return False
    return isinstance(error, ConnectionError | TimeoutError | OSError) or _refusal(error) is not None


def _refusal(error: Exception) -> str | None:
    """Which of `_PASSING` the server said; redis-py cuts it off the errors that it has a class for."""
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    found = _PASSING.search(str(error))
    return None if found is None else found[1]


def _named(error: Exception, wait: float) -> Exception:
    refusal = _refusal(error)
    if refusal == "OOM":
        return RedisFull(
            f"Redis is at its memory limit, and was for {wait:g} s: {error}; give it more (HEADRACE_REDIS_MEMORY, or "
            "maxmemory of your own), or end jobs",
            retry_after=RETRY_AFTER_SECONDS,
        )
    if refusal == "MISCONF":
        return DiskFull(
            f"Redis cannot write its append-only file, and could not for {wait:g} s: {error}",
            retry_after=RETRY_AFTER_SECONDS,
        )
    return error
