"""The answer that carries an event stream.

    pieces ─► client, until they end, the client leaves, or what let it in is revoked or has expired: asked every
              `CHECK_SECONDS`; then an `error` event says so

A connection that takes nothing for `STUCK_SECONDS` is cut off.
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
"""A stream that has nothing to say carries a comment so often."""
STUCK_SECONDS = 60.0
CHECK_SECONDS = 3.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Neither caches nor proxies may hold a stream back."""
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
}


class SseResponse(Response):
    """Sends pieces as they come, until they or the client end."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="event stream")
        leaving = asyncio.create_task(_left(receive), name="event stream's client")
        closing = asyncio.create_task(_closed(scope), name="event stream's key")
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
            await _last(send, closing.result())

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
                    return  # without the last chunk: the server closes the connection, the client knows it is cut off
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _closed(scope: Scope) -> bytes:
    """Returns what the client is told once its key, or its session, opens nothing any more."""
    shown: OpenedBy | None = scope["state"].get("opened_by")
    if shown is None:  # no key is asked for
        return await asyncio.Future[bytes]()
    keys: KeyStore = scope["app"].state.gateway.keys
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await keys.check(shown)
        except NotAuthenticated as error:
            said = {"message": error.message, "type": "invalid_request_error", "param": None, "code": error.code}
            return b"event: error\ndata: %s\n\n" % msgspec.json.encode({"error": said})
        except RedisError as error:
            as_unavailable(error)  # it passes; what does not is raised


async def _last(send: Send, piece: bytes) -> None:
    """Cut off where the client takes nothing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            await send({"type": "http.response.body", "body": piece, "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
