"""The Redis client of every service: how to connect, how to await commands, and which errors are retried.

    a command ─► Redis ─► answer
        ▲          └──► unreachable, loading, read-only, busy, full ─► wait 0.05 s … 2 s, jittered ─┐
        └───────────────────────── retry, until `wait` seconds have passed ◄────────────────────────┘

Invariants: a command ends with an answer, or with an error after at most `wait` seconds plus the time limit of one
answer. A command that was not answered may have been carried out, so every command must be safe to repeat (decision
0009). No message from this module contains a password.
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
from ..concurrency import acquire_or_undo
from ..errors import DiskFull, RedisFull, Unavailable
from ..logs import get_logger
from ..redaction import conceal_password
from ..redis_address import masked

WAIT_SECONDS = 120.0
"""For how long a worker retries by default; the setting redis_wait overrides it."""
GATEWAY_WAIT_SECONDS = 2.0
"""For how long the gateway retries: it rather answers a request with an error, and the client can retry."""
GATEWAY_ANSWER_SECONDS = 5.0
RETRY_AFTER_SECONDS = 5
_ANSWER_SECONDS = 30.0
_FIRST_DELAY, _MAX_DELAY = 0.1, 2.0
_MAX_CONNECTIONS = 4096
"""Per process. redis-py's default of 100 is soon used up by blocking calls, and the next call fails instead of
waiting."""
_TRANSIENT = re.compile(r"(?:^|: -)(LOADING|READONLY|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|OOM)\b")
"""Error codes of a server that may accept the command later: it is starting, changing its role, running a script, or
full. Before Redis 7, the code of a command within a script is in the middle of the message, after ": -"."""
_PERMANENT_ERRORS = (AuthenticationError, AuthorizationError, MaxConnectionsError, ssl.SSLCertVerificationError)
_Answer = TypeVar("_Answer")
_deadline: ContextVar[float | None] = ContextVar("until", default=None)
"""Deadline of the command in progress, on the monotonic clock. Connecting for it shares the command's deadline."""
log = get_logger(__name__)


def connect(url: str, wait: float = WAIT_SECONDS, answer_within: float = _ANSWER_SECONDS) -> Redis:
    """A client for `redis://…`, `rediss://…` or `unix:///path`. Answers are bytes.

    An attempt fails after `answer_within` seconds without an answer. While Redis is unreachable, or says that it may
    accept the command later, the command is retried for `wait` seconds. Then the last error is raised: redis-py's own,
    `RedisFull` if Redis is at its memory limit, or `DiskFull` if it cannot write its append-only file.
    """
    conceal_password(url)
    return Redis.from_url(
        url,
        socket_connect_timeout=min(5.0, answer_within),
        socket_timeout=answer_within,
        health_check_interval=15,
        retry=_RetryUntil(wait),
        max_connections=_MAX_CONNECTIONS,
    )


def connect_for_requests(url: str) -> Redis:
    """A client whose commands end within seconds, for a gateway, whose clients can retry."""
    return connect(url, GATEWAY_WAIT_SECONDS, GATEWAY_ANSWER_SECONDS)


async def ping(redis: Redis) -> None:
    """Raises `Unavailable` when Redis does not answer."""
    try:
        await run(redis.ping())
    except (RedisError, OSError) as error:
        raise unavailable(error) from error


async def run(value: Awaitable[Any] | Any) -> Any:
    """Await a command. It only fixes the type: redis-py types one client for sync and async use."""
    return await cast("Awaitable[Any]", value)


async def acquired(lock: Lock) -> bool:
    """Acquire `lock`, waiting as long as the lock's own settings say. Returns whether the caller holds it now.

    A caller that is cancelled meanwhile does not hold it.
    """

    async def free(held: bool) -> None:
        if held:
            await lock.release()

    return await acquire_or_undo(lock.acquire(), free)


def unavailable(error: Exception) -> Unavailable:
    """The error for a caller when Redis was not reached in time."""
    return Unavailable(f"Redis does not answer: {masked(str(error))}", retry_after=RETRY_AFTER_SECONDS)


class _RetryUntil(Retry):
    """redis-py's retry policy: repeats a command for `wait` seconds, on a new connection each time."""

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
        """See `Retry`. A nested call (connecting for a command) keeps to the deadline of the outer one."""
        began, outer = time.monotonic(), _deadline.get()
        deadline = began + self._wait if outer is None else outer
        token, failures = _deadline.set(deadline), 0
        try:
            while True:
                try:
                    result = await do()
                except (RedisError, OSError) as error:
                    if not is_transient(error) or (is_retryable and not is_retryable(error)):
                        raise
                    failures += 1
                    await (fail(error, failures) if with_failure_count else fail(error))
                    await _pause(error, failures, deadline, self._wait)
                else:
                    if outer is None and failures > 1:
                        log.warning("Redis answers again", after_seconds=round(time.monotonic() - began, 1))
                    return result
        finally:
            _deadline.reset(token)


async def _pause(error: Exception, failures: int, deadline: float, wait: float) -> None:
    """Sleep before the next attempt. Raises the error instead if the deadline has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise _final_error(error, wait) from error
    if failures == 2:
        log.warning("Redis is waited for", seconds=round(left, 1), error=masked(str(error)))
    await asyncio.sleep(min(left, jittered_delay_after(failures, _FIRST_DELAY, _MAX_DELAY)))


def is_transient(error: Exception) -> bool:
    """Whether the same command may be answered later: not a wrong password, certificate or command."""
    wrapped = error.__cause__ or error.__context__  # redis-py wraps errors while it connects in a ConnectionError
    if isinstance(error, _PERMANENT_ERRORS) or isinstance(wrapped, _PERMANENT_ERRORS):
        return False
    return isinstance(error, ConnectionError | TimeoutError | OSError) or _refusal(error) is not None


def _refusal(error: Exception) -> str | None:
    """The code of `_TRANSIENT` in the server's error; redis-py removes it from errors that it has a class for."""
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    found = _TRANSIENT.search(str(error))
    return None if found is None else found[1]


def _final_error(error: Exception, wait: float) -> Exception:
    """The error to raise after `wait` seconds of retries: Headrace's own where the cause is known, else `error`."""
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
