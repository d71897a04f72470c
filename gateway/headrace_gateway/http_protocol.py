"""HTTP as uvicorn reads it, with a bound on a request's head: uvicorn's own is for h11 alone, and httptools has none.

    connection, or a request's first byte ─► head: at most MAX_HEAD_BYTES and HEAD_SECONDS ─► routes bound the body
                                                │ 431, or no answer; the connection is closed

Invariant: what has not shown a whole head holds little memory, and not for long.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers; browsers and proxies send a tenth of it at most."""
HEAD_SECONDS = 30.0
_REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """One connection."""

    _head: int | None = 0
    """Bytes of the head that is being read, and of what came in the same piece before it; None while none is."""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`, as are the next two."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_message_begin(self) -> None:
        """See httptools, as is the next: a head begins, and ends."""
        super().on_message_begin()
        if self._late is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._done()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._head = 0
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _done(self) -> None:
        self._head = None
        if self._late is not None:
            self._late.cancel()
            self._late = None
