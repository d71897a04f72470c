"""The bound on a request's head, on a real gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from headrace_gateway import http_protocol
from headrace_gateway.http_protocol import MAX_HEAD_BYTES

from .conftest import Served

START = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"


async def answered(served: Served, *pieces: bytes) -> bytes:
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
    ],
    ids=["one header", "many headers", "the path"],
)
async def test_a_head_without_end_is_refused(served: Served, head: bytes) -> None:
    pieces = [head[n : n + 16_384] for n in range(0, len(head), 16_384)]
    with suppress(ConnectionError):  # closed while we still wrote: what was said is lost with it
        assert (await answered(served, *pieces)).startswith(b"HTTP/1.1 431 ")
    async with httpx.AsyncClient(base_url=served.url) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_a_head_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
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
