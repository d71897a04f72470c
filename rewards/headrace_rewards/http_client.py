"""How a reward asks a server, so that whatever the server does ends as an answer or as a `Failure`.

    post ─► a free place, of `concurrency` ─► breaker open? ── yes ─► Failure("unavailable") at once
                                                │ no
                                                ▼
              2xx and JSON ─► Answer ◄─────── attempt ◄─────────────────────────────────┐
              400, 413, 422 ─► Failure          │ no connection, 429, 5xx               │
              too slow, no JSON, … ─► Failure   └─► backoff and jitter, or Retry-After ─┘ at most `attempts` times

* A post takes no longer than `attempts` times its timeout and `_LONGEST_WAIT`, once it has its place.
* Redirects are not followed, proxies of the environment are not used, and an answer is read up to `MAX_ANSWER_BYTES`.
* No value of a header stands in a message or a `repr`, not even where the server repeats it, nor in a log.
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
"""Seconds before the second attempt at most: see `jittered_delay_after`."""
_LONGEST_WAIT = 30.0
"""A server that asks to be left alone for longer is not waited for."""
_PORTS = {"http": 80, "https": 443}
_QUOTED_CHARACTERS = 200
_BAD_INPUT = (400, 413, 422)
_CLOSED = Failure("unavailable", "the reward was closed")


class JsonAnswer(NamedTuple):
    """The JSON that the server answered."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Fault:
    failure: Failure
    again: bool = False
    """Another attempt may help."""
    after: float = 0.0
    """Seconds for which the server wants to be left alone."""

    @property
    def says_ill(self) -> bool:
        return self.again or self.failure.kind == "timeout"


class Breaker:
    """Leaves a server alone that failed too often in a row.

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

    def admits(self) -> bool:
        """Whether to ask now; of those that come while it is half open, only the first."""
        if self._opens_at is None:
            return True
        now = time.monotonic()
        if now < self._opens_at:
            return False
        self._opens_at = now + self._seconds
        return True

    def note(self, *, well: bool) -> None:
        """Record how a post ended."""
        if well:
            self._failures, self._opens_at = 0, None
            return
        self._failures += 1
        if self._failures >= self._limit:
            self._opens_at = time.monotonic() + self._seconds

    def __str__(self) -> str:
        return f"failed {self._failures} times in a row; it is asked again after {self._seconds:g} s"


class JsonClient:
    """Posts JSON to one address. `headers` are secrets: see the module."""

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
        self._places = asyncio.Semaphore(concurrency)
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
        """Be ready to post; asks nothing yet."""
        self._client = httpx.AsyncClient(
            # a compressed answer could be a thousand times what is read of it
            headers={**self._headers, "content-type": "application/json", "accept-encoding": "identity"},
            timeout=httpx.Timeout(None, connect=min(self._timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=self._concurrency),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Drop the connections; posts in flight end with `unavailable`. Idempotent."""
        self._closed = True
        for post in self._posts:
            post.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def unreached(self) -> Failure | None:
        """Whether the server accepts a connection, without asking it anything: `None`, or why not."""
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
        with contextlib.suppress(OSError):  # it may be cut off by the other side
            await writer.wait_closed()
        return None

    async def post(self, body: bytes) -> JsonAnswer | Failure:
        """The server's answer to an encoded body."""
        if self._client is None:
            raise InvalidState("the reward was not started")
        if self._closed:
            return _CLOSED
        post = asyncio.create_task(self._settle(self._client, body))
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
        """The text without the values of the headers; for what the server says of itself."""
        for value in self._headers.values():
            for secret in (value, value.rpartition(" ")[2]):  # `Bearer KEY`, and KEY
                for spelling in {secret, json.dumps(secret)[1:-1]} - {""}:
                    text = text.replace(spelling, "***")
        return text

    def quoted(self, content: bytes | str) -> str:
        """The beginning of what the server wrote, on one line, for a message."""
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        text = " ".join(self.redacted(text).split())
        return f"{text[:_QUOTED_CHARACTERS]}{'…' if len(text) > _QUOTED_CHARACTERS else ''}"

    async def _settle(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | Failure:
        async with self._places:
            return await self._ask(client, body)

    async def _ask(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | Failure:
        attempt = 1
        while True:
            if not self._breaker.admits():
                return Failure("unavailable", f"{self._server} {self._breaker}")
            answer = await self._attempt(client, body)
            if isinstance(answer, JsonAnswer):
                self._breaker.note(well=True)
                return answer
            if attempt == self._attempts or not answer.again or answer.after > _LONGEST_WAIT:
                self._breaker.note(well=not answer.says_ill)
                return answer.failure
            await asyncio.sleep(max(answer.after, jittered_delay_after(attempt, _FIRST_WAIT, _LONGEST_WAIT)))
            attempt += 1

    async def _attempt(self, client: httpx.AsyncClient, body: bytes) -> JsonAnswer | _Fault:
        try:
            async with (
                asyncio.timeout(self._timeout),
                client.stream("POST", self._url, content=body) as response,
            ):
                content = await _read(response)
        except TimeoutError:
            return _Fault(Failure("timeout", f"{self._server} did not answer within {self._timeout:g} s"))
        except httpx.TransportError as fault:
            reason = self.quoted(f"{type(fault).__name__}: {fault}")
            return _Fault(Failure("unavailable", f"{self._server} cannot be asked: {reason}"), again=True)
        return self._read_answer(response, content)

    def _read_answer(self, response: httpx.Response, content: bytes) -> JsonAnswer | _Fault:
        status = response.status_code
        said = f"{self._server} answered {status}: {self.quoted(content)}"
        if status == 429 or status >= 500:
            return _Fault(Failure("unavailable", said), again=True, after=_retry_after(response))
        if status in _BAD_INPUT:
            return _Fault(Failure("bad_input", said))
        if response.is_redirect:
            target = self.quoted(response.headers.get("location", ""))
            return _Fault(
                Failure("unavailable", f"{self._server} redirects to {target}, and redirects are not followed")
            )
        if not response.is_success:
            return _Fault(Failure("unavailable", said))
        if len(content) > MAX_ANSWER_BYTES:
            return _Fault(Failure("bad_output", f"{self._server} answered more than {MAX_ANSWER_BYTES} bytes"))
        if response.headers.get("content-encoding", "identity") != "identity":
            return _Fault(Failure("bad_output", f"{self._server} compressed its answer, and was asked not to"))
        try:
            return JsonAnswer(msgspec.json.decode(content))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            reason = f"{self._server} answered no JSON ({type(fault).__name__}): {self.quoted(content)}"
            return _Fault(Failure("bad_output", reason))


def parsed_url(text: str) -> httpx.URL:
    """An http or https address without user name or fragment; raises `ValueError`."""
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
    """Whether `host` (any port) or `host:port` of the address is among them; IPv6 in brackets."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = url.port or _PORTS[url.scheme]
    return not {host, f"{host}:{port}"}.isdisjoint(entry.lower() for entry in hosts)


async def _read(response: httpx.Response) -> bytes:
    """The body, or a beginning of it that is longer than `MAX_ANSWER_BYTES`."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            break
    return bytes(content)


def _retry_after(response: httpx.Response) -> float:
    """Seconds, from either form of the header; 0 where there is none that can be read (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
