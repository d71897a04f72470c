"""Uvicorn's HTTP protocol on httptools, with limits on the request's size and time, which uvicorn lacks there.

    connection ─► head: MAX_HEAD_BYTES, MAX_HEADERS, HEAD_SECONDS ─► body: at least BODY_BYTES_PER_SECOND
                   │ 431 · 408                                         │ 408; 431 for more than MAX_HEAD_BYTES of chunk
                   └───────────────── the connection is closed ────────┘ sizes, extensions and trailers between bytes

Invariants: a connection without a complete head takes little memory, for a limited time; a body whose client stops
sending is not waited for; trailers are dropped, because access was checked by the headers alone. The length of a body
is limited where its path is known (`request_envelope`).
"""

from __future__ import annotations

import asyncio
import json
from typing import Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and all headers; browsers and proxies send at most a tenth of it."""
MAX_HEADERS = 256
HEAD_SECONDS = 30.0
BODY_SECONDS = 30.0
"""Within this time a body must end, or its share of bytes arrive, unless the server itself did not read."""
BODY_BYTES_PER_SECOND = 4096
_HEAD_PIECE, _BODY_PIECE = 4096, 64 * 1024
"""Bytes parsed at a time: a limit can be exceeded by this many, however large one read is."""


class BoundedRequests(HttpToolsProtocol):
    """The protocol of one connection."""

    _reading: Literal["head", "body"] | None = None
    """The part of the current request that is being read; None between two requests."""
    _unread = 0
    """Bytes parsed since the last byte of a body, or since the end of the head or of the previous request."""
    _brought = 0
    """Bytes of the body that have arrived since the timer was set."""
    _behind = False
    """Whether reading was paused since then, because the route had not yet taken the bytes that had arrived."""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`, as are the next two."""
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self.transport.is_closing():
            piece = data[start : start + (_BODY_PIECE if self._reading == "body" else _HEAD_PIECE)]
            start += len(piece)
            self._unread += len(piece)
            super().data_received(piece)
            if self._unread > MAX_HEAD_BYTES:
                self._refuse(431, "Request Header Fields Too Large", f"a head takes more than {MAX_HEAD_BYTES} bytes")
        if self._late is None and not self.transport.is_closing() and (self._reading or self._unanswered_is_none):
            self._set_timer()

    def on_message_begin(self) -> None:
        """See httptools, as are the next ones."""
        super().on_message_begin()
        self._reading = "head"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading == "body":  # a trailer
            return
        if len(self.headers) == MAX_HEADERS:
            self._refuse(431, "Request Header Fields Too Large", f"more than {MAX_HEADERS} headers")
            raise ValueError("too many headers")  # ends the parsing
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reading, self._unread = "body", 0
        self._cancel_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._brought += len(body)
        super().on_body(body)
        self._behind |= self.flow.read_paused

    def on_message_complete(self) -> None:
        self._reading, self._unread = None, 0
        self._cancel_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: the response to a request that cannot be parsed, unless one was already sent."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    @property
    def _unanswered_is_none(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _set_timer(self) -> None:
        self._brought, self._behind = 0, False
        seconds = BODY_SECONDS if self._reading == "body" else HEAD_SECONDS
        self._late = self.loop.call_later(seconds, self._on_time)

    def _cancel_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _on_time(self) -> None:
        self._late = None
        if self._reading is None:
            if self._unanswered_is_none:  # a connection without a request
                self.transport.close()
        elif self._reading == "head":
            self._refuse(408, "Request Timeout", f"the head did not come within {HEAD_SECONDS:g} s")
        elif self.cycle.response_complete:  # the rest of a body that was refused
            self.transport.close()
        elif self._behind or self.flow.read_paused or self._brought >= BODY_BYTES_PER_SECOND * BODY_SECONDS:
            self._set_timer()
        else:
            self._refuse(
                408, "Request Timeout", f"the body brought only {self._brought} bytes within {BODY_SECONDS:g} s"
            )

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        """Close the connection, with a response if the next one is due to this request and has not begun."""
        of_this = self._reading == "body" and not self.pipeline and not self.cycle.response_started
        if self._unanswered_is_none or of_this:
            code = {408: "timed_out", 431: "too_large"}[status]
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
