"""The response that carries an event stream.

    pieces ─► client, until they end, the client disconnects, or its key or session is not valid any more: this is
              checked every `CHECK_SECONDS`, and reported by an `error` event

A connection whose client reads nothing for `STUCK_SECONDS` is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from fastapi.responses import Response
from redis.exceptions import RedisError
from starlette.types import Receive, Scope, Send

from headrace_core.errors import NotAuthenticated

from ..auth.api_keys import KeyStore
from ..principal import OpenedBy
from ..web.errors import as_unavailable

PING_SECONDS = 10
"""Interval of the comments in a stream without events."""
STUCK_SECONDS = 60.0
CHECK_SECONDS = 3.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Keep caches and proxies from buffering the stream."""
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
}


class SseResponse(Response):
    """Sends pieces as they come, until they end or the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="event stream")
        leaving = asyncio.create_task(_wait_for_disconnect(receive), name="event stream's client")
        closing = asyncio.create_task(_wait_for_revocation(scope), name="event stream's key")
        tasks = (sending, leaving, closing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not sending.cancelled():
            sending.result()
        elif not closing.cancelled():
            await _send_last(send, closing.result())

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._pieces):
            async for piece in self._pieces:
                if not piece:
                    continue
                try:
                    async with asyncio.timeout(STUCK_SECONDS):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                except TimeoutError:
                    # without the last chunk: the server closes the connection, and the client sees that it is
                    # incomplete
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_revocation(scope: Scope) -> bytes:
    """Wait until the client's key or session is not valid any more; returns the error event for it."""
    credentials: OpenedBy | None = scope["state"].get("opened_by")
    if credentials is None:  # the gateway requires no keys
        return await asyncio.Future[bytes]()
    keys: KeyStore = scope["app"].state.gateway.keys
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await keys.check(credentials)
        except NotAuthenticated as error:
            detail = {"message": error.message, "type": "invalid_request_error", "param": None, "code": error.code}
            return b"event: error\ndata: %s\n\n" % msgspec.json.encode({"error": detail})
        except RedisError as error:
            as_unavailable(error)  # raises errors that are not transient


async def _send_last(send: Send, piece: bytes) -> None:
    """Send the last piece; give up if the client does not read it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            await send({"type": "http.response.body", "body": piece, "more_body": False})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
