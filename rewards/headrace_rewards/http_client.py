"""HTTP client of the rewards that call a server. Whatever the server does, a post ends with an answer or a `Failure`.

    post ─► a free slot, of `concurrency` ─► breaker open? ── yes ─► Failure("unavailable") at once
                                               │ no
                                               ▼
              2xx and JSON ─► JsonAnswer ◄── attempt ◄─────────────────────────────────┐
              400, 413, 422 ─► Failure         │ no connection, 429, 5xx               │
              too slow, no JSON, … ─► Failure  └─► backoff and jitter, or Retry-After ─┘ at most `attempts` times

* Once a post has its slot, it takes at most `attempts` times (its timeout + `_MAX_WAIT`).
* Redirects are not followed, proxies of the environment are not used, and an answer is read up to `MAX_ANSWER_BYTES`.
* No value of a header appears in a message, a `repr` or a log, not even if the server repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx
import msgspec

from headrace_core.backoff import jittered_delay_after
from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.protocols.grader_check import Failure
from headrace_core.redaction import conceal

MAX_ANSWER_BYTES = 4 << 20
_CONNECT_SECONDS = 5.0
_FIRST_WAIT = 0.25
"""Longest delay before the second attempt, in seconds: see `jittered_delay_after`."""
_MAX_WAIT = 30.0
"""Longest delay between two attempts. A server whose Retry-After is longer is not tried again."""
_PORTS = {"http": 80, "https": 443}
_QUOTED_CHARACTERS = 200
_BAD_INPUT = (400, 413, 422)
_CLOSED = Failure("unavailable", "the reward was closed")


class JsonAnswer(NamedTuple):
    """The decoded JSON of a server's answer."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Failed:
    """One attempt that failed."""

    failure: Failure
    again: bool = False
    """Whether another attempt may succeed."""
    after: float = 0.0
    """The server's Retry-After, in seconds."""

    @property
    def shows_trouble(self) -> bool:
        """Whether the server itself is in trouble, rather than the request wrong: the breaker counts it."""
        return self.again or self.failure.kind == "timeout"


class Breaker:
    """Circuit breaker: sends no requests to a server that failed too often in a row.

    closed ─ `failures` posts in a row failed ─► open ─ `seconds` later ─► one post is let through
       ▲                                           ▲                          │ failed        │ answered
       │                                           └──────────────────────────┘               │
       └──────────────────────────────────────────────────────────────────────────────────────┘
    """

    def __init__(self, failures: int = 5, seconds: float = 10.0) -> None:
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._opens_at: float | None = None
        """When the next post is let through, on the monotonic clock; `None` while closed."""

    def allows(self) -> bool:
        """Whether a post may be sent now. After the pause, only the first post is allowed until its result is known."""
        if self._opens_at is None:
            return True
        now = time.monotonic()
        if now < self._opens_at:
            return False
        self._opens_at = now + self._seconds
        return True

    def record(self, *, success: bool) -> None:
        """Record how a post ended."""
        if success:
            self._failures, self._opens_at = 0, None
            return
        self._failures += 1
        if self._failures >= self._limit:
            self._opens_at = time.monotonic() + self._seconds

    def __str__(self) -> str:
        return f"failed {self._failures} times in a row; it is asked again after {self._seconds:g} s"


class JsonClient:
    """Posts JSON to one address. The values of `headers` are treated as secrets: see the module."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        attempts: int,
        concurrency: int,
        headers: Mapping[str, str] | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """`timeout`: seconds for one attempt. Raises `InvalidRequest` for a header that cannot be sent."""
        self._url = httpx.URL(url)
        self._server = f"{self._url.scheme}://{self._url.netloc.decode()}"
        self._timeout = timeout
        self._attempts = attempts
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._breaker = breaker or Breaker()
        self._headers = dict(headers or {})
        for name, value in self._headers.items():
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise InvalidRequest(f"the value of the header '{name}' holds characters that no header can hold")
            conceal(value.rpartition(" ")[2])
        self._client: httpx.AsyncClient | None = None
        self._posts: set[asyncio.Task[JsonAnswer | Failure]] = set()
        self._closed = False

    async def start(self) -> None:
        """Open the client; sends nothing yet."""
        self._client = httpx.AsyncClient(
            # identity: a compressed answer could grow a thousandfold when it is decoded
            headers={**self._headers, "content-type": "application/json", "accept-encoding": "identity"},
            timeout=httpx.Timeout(None, connect=min(self._timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=self._concurrency),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections; posts in flight return `unavailable`. Idempotent."""
        self._closed = True
        for post in self._posts:
            post.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def connection_failure(self) -> Failure | None:
        """Open a connection without sending a request: `None` if the server accepts it, else why not."""
        port = self._url.port or _PORTS[self._url.scheme]
        limit = min(self._timeout, _CONNECT_SECONDS)
        try:
            async with asyncio.timeout(limit):
                _, writer = await asyncio.open_connection(self._url.host, port)
        except TimeoutError:
            return Failure("unavailable", f"{self._server} accepts no connection within {limit:g} s")
        except OSError as fault:
            return Failure("unavailable", f"{self._server} accepts no connection: {fault.strerror or fault}")
        writer.close()
        with contextlib.suppress(OSError):  # the server may have closed the connection first
            await writer.wait_closed()
        return None

    async def post(self, body: bytes) -> JsonAnswer | Failure:
        """Send an encoded body, with retries; returns the server's answer or the failure of the last attempt."""
        if self._client is None:
            raise InvalidState("the reward was not started")
        if self._closed:
            return _CLOSED
        post = asyncio.create_task(self._post_in_turn(self._client, body))
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)
        try:
            return await post
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and caller is not None and not caller.cancelling():
                return _CLOSED
            raise

    def redacted(self, text: str) -> str:
        """The text with the values of the headers masked, since a server may repeat what it was sent."""
        for value in self._headers.values():
            for secret in (value, value.rpartition(" ")[2]):  # `Bearer KEY`, and KEY
                for spelling in {secret, json.dumps(secret)[1:-1]} - {""}:
                    text = text.replace(spelling, "***")
        return text

    def quoted(self, content: bytes | str) -> str:
        """The beginning of a server's text, redacted and on one line, for an error message."""
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        text = " ".join(self.redacted(text).split())
        return f"{text[:_QUOTED_CHARACTERS]}{'…' if len(text) > _QUOTED_CHARACTERS else ''}"

    async def _post_in_turn(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | Failure:
        async with self._slots:
            return await self._post_with_retries(client, body)

    async def _post_with_retries(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | Failure:
        attempt = 1
        while True:
            if not self._breaker.allows():
                return Failure("unavailable", f"{self._server} {self._breaker}")
            answer = await self._attempt(client, body)
            if isinstance(answer, JsonAnswer):
                self._breaker.record(success=True)
                return answer
            if attempt == self._attempts or not answer.again or answer.after > _MAX_WAIT:
                self._breaker.record(success=not answer.shows_trouble)
                return answer.failure
            await asyncio.sleep(max(answer.after, jittered_delay_after(attempt, _FIRST_WAIT, _MAX_WAIT)))
            attempt += 1

    async def _attempt(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | _Failed:
        try:
            async with (
                asyncio.timeout(self._timeout),
                client.stream("POST", self._url, content=body) as response,
            ):
                content = await _read(response)
        except TimeoutError:
            return _Failed(Failure("timeout", f"{self._server} did not answer within {self._timeout:g} s"))
        except httpx.TransportError as fault:
            reason = self.quoted(f"{type(fault).__name__}: {fault}")
            return _Failed(Failure("unavailable", f"{self._server} cannot be asked: {reason}"), again=True)
        return self._read_answer(response, content)

    def _read_answer(self, response: httpx.Response, content: bytes) -> JsonAnswer | _Failed:
        status = response.status_code
        message = f"{self._server} answered {status}: {self.quoted(content)}"
        if status == 429 or status >= 500:
            return _Failed(Failure("unavailable", message), again=True, after=_retry_after(response))
        if status in _BAD_INPUT:
            return _Failed(Failure("bad_input", message))
        if response.is_redirect:
            target = self.quoted(response.headers.get("location", ""))
            return _Failed(
                Failure("unavailable", f"{self._server} redirects to {target}, and redirects are not followed")
            )
        if not response.is_success:
            return _Failed(Failure("unavailable", message))
        if len(content) > MAX_ANSWER_BYTES:
            return _Failed(Failure("bad_output", f"{self._server} answered more than {MAX_ANSWER_BYTES} bytes"))
        if response.headers.get("content-encoding", "identity") != "identity":
            return _Failed(Failure("bad_output", f"{self._server} compressed its answer, and was asked not to"))
        try:
            return JsonAnswer(msgspec.json.decode(content))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            reason = f"{self._server} answered no JSON ({type(fault).__name__}): {self.quoted(content)}"
            return _Failed(Failure("bad_output", reason))


def parsed_url(text: str) -> httpx.URL:
    """Parse an http or https address without user name and fragment. Raises `ValueError`."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as fault:
        raise ValueError(f"not an address: {fault}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("an address begins with http:// or https:// and a host")
    if url.userinfo or url.fragment:
        raise ValueError("an address holds no user name, password or fragment here; secrets go into headers")
    return url


def is_allowed(url: httpx.URL, hosts: Sequence[str]) -> bool:
    """Whether `hosts` contains the address's `host` (any port) or `host:port`; IPv6 in brackets."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = url.port or _PORTS[url.scheme]
    return not {host, f"{host}:{port}"}.isdisjoint(entry.lower() for entry in hosts)


async def _read(response: httpx.Response) -> bytes:
    """The response's body. Reading stops beyond `MAX_ANSWER_BYTES`; the caller checks the length."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            break
    return bytes(content)


def _retry_after(response: httpx.Response) -> float:
    """Seconds of a Retry-After header in either form (RFC 9110, 10.2.3); 0 if it is missing or cannot be parsed."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
