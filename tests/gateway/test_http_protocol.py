"""The bounds on requests that are not yet read, on a real gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from headrace_gateway.service import bounded_http
from headrace_gateway.service.bounded_http import MAX_HEAD_BYTES

from .conftest import Served
from .keyed import Keyed, keyed

__all__ = ["keyed"]

START = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"


async def answered(served: Served | Keyed, *pieces: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        START + b"x-long: " + b"a" * 2 * MAX_HEAD_BYTES,
        START + b"".join(b"x-%d: a\r\n" % n for n in range(20_000)),
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES,
        START + b"x-long: " + b"a" * 108_000 + b"\r\n\r\n",
        START + b"a:\r\n" * 300 + b"\r\n",
    ],
    ids=["one header", "many headers", "the path", "a whole head in one read", "too many headers"],
)
async def test_a_head_without_end_is_refused(served: Served, head: bytes) -> None:
    pieces = [head[n : n + 16_384] for n in range(0, len(head), 16_384)]
    for sent in ([head], pieces):
        with suppress(ConnectionError):  # closed while we still wrote: what was said is lost with it
            assert (await answered(served, *sent)).startswith(b"HTTP/1.1 431 ")
    async with httpx.AsyncClient(base_url=served.url) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_a_long_head_behind_another_request_is_not_answered(served: Served) -> None:
    with suppress(ConnectionError):
        said = await answered(served, START + b"\r\n" + START + b"x-long: " + b"a" * 108_000 + b"\r\n\r\n")
        assert said.count(b"HTTP/1.1 200 ") <= 1


async def test_a_head_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.2)
    for pieces in ([], [b"G"], [START], [START + b"\r\n" + START]):
        said = await answered(served, *pieces)
        assert said.count(b"HTTP/1.1 200") == b"".join(pieces).count(b"\r\n\r\n")


async def test_large_bodies_and_heads_that_come_in_pieces_are_taken(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"x" * 3 * MAX_HEAD_BYTES
    post = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head = post + b"content-length: %d\r\nx: %s\r\n" % (len(body), b"a" * 30_000)
    last = START + b"connection: close\r\n\r\n"
    said = await answered(served, head[:10], head[10:], b"\r\n" + body[:100], body[100:], START, b"\r\n" + last)
    assert [said.count(b"HTTP/1.1 %d" % status) for status in (400, 200, 431)] == [1, 2, 0]


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────

CHUNKED = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
JSON, FORM = b"application/json", b"application/x-www-form-urlencoded"


async def test_a_trailer_is_no_header(keyed: Keyed) -> None:
    """Who sends a key behind the body has not shown it when the request is let in; so it opens nothing."""
    head = CHUNKED % (b"/v1/headrace/keys", JSON) + b'd\r\n{"name": "x"}\r\n0\r\n'
    trailer = b"authorization: Bearer " + keyed.admin.encode() + b"\r\n\r\n"
    closing = START + b"connection: close\r\n\r\n"
    said = await answered(keyed, head + trailer + closing)
    assert [said.count(b"HTTP/1.1 %d" % status) for status in (401, 200)] == [1, 1]
    assert len(await keyed.keys.all()) == 3


@pytest.mark.parametrize(
    "behind",
    [b"0\r\nx-long: " + b"a" * 500_000, b"0\r\n" + b"x: a\r\n" * 80_000, b"1;x=" + b"a" * 500_000],
    ids=["a trailer", "trailers", "an extension of a chunk"],
)
async def test_what_is_between_the_bytes_of_a_body_has_an_end(served: Served, behind: bytes) -> None:
    with suppress(ConnectionError):
        said = await answered(served, CHUNKED % (b"/login", FORM) + b"1\r\na\r\n" + behind)
        assert said.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 303 "))
        assert len(said) < 2000


async def test_a_body_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "BODY_SECONDS", 0.3)
    form = b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-type: %s\r\ncontent-length: 900\r\n\r\n" % FORM
    for body in (b"", b"key=", b"key=" + b"a" * 800):
        said = await answered(served, form + body)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "timed_out"' in said
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(CHUNKED % (b"/v1/fine_tuning/jobs", JSON))
    for _ in range(100):  # a byte at a time would keep a connection for ever
        writer.write(b"1\r\n \r\n")
        with suppress(TimeoutError):
            assert (await asyncio.wait_for(reader.readline(), 0.05)).startswith(b"HTTP/1.1 408 ")
            break
    else:
        pytest.fail("the body was waited for")
    writer.close()


async def test_a_slow_body_that_comes_on_is_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "BODY_SECONDS", 0.2)
    post = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(post + b"content-length: 40000\r\nconnection: close\r\n\r\n")
    for _ in range(10):
        writer.write(b"x" * 4000)
        await writer.drain()
        await asyncio.sleep(0.08)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_the_rest_of_a_body_that_was_refused_is_not_read_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "BODY_SECONDS", 0.3)
    post = b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\ncontent-type: %s\r\n\r\n"
    said = await answered(served, post % (10**12, FORM), b"a" * 1000)
    assert said.startswith(b"HTTP/1.1 303 ") or said.startswith(b"HTTP/1.1 413 ")
