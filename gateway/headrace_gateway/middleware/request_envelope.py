"""Adds `x-request-id` to every response, and turns every error into `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import uuid

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_core.errors import HeadraceError
from headrace_core.logs import get_logger

from ..web.errors import as_unavailable, error_response, error_response_for, explain

log = get_logger(__name__)

MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_LOGIN_BYTES = 16 * 1024
"""Limit of a login's body, which anybody may send without a key."""
_MULTIPART_OVERHEAD = 64 * 1024


def install(app: FastAPI, max_upload_bytes: int) -> None:
    """Install the handlers of all errors, and the `Envelope` middleware."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HeadraceError)
        return error_response_for(error)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_route", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code)
        message = "no such route" if error.status_code == 404 else str(error.detail)
        return error_response(error.status_code, message, code=code)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param, code = explain(error.errors()[0])
        return error_response(400, message, param=param, code=code)

    async def no_redis(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RedisError)
        return error_response_for(as_unavailable(error))

    async def not_unicode(_: Request, error: Exception) -> JSONResponse:
        # JSON's escapes can encode a lone surrogate, which Python decodes; it fails where it is encoded again.
        return error_response(400, "the body's text is not Unicode: a surrogate stands alone", code="invalid_json")

    app.add_exception_handler(HeadraceError, known)
    app.add_exception_handler(UnicodeEncodeError, not_unicode)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RedisError, no_redis)
    app.add_middleware(Envelope, max_upload_bytes=max_upload_bytes)


class Envelope:
    """Middleware for the request id, the limit of the body, and errors that no other handler takes."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        login = dict.fromkeys(("/login", "/logout"), MAX_LOGIN_BYTES)
        self._limits = {"/v1/files": max_upload_bytes + _MULTIPART_OVERHEAD, **login}
        """Limits of the body's size in bytes, by path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex[:24]}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), tagged)
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=ascii(scope["path"]))
            if started:
                raise
            response = error_response(500, f"internal error; see the log at {request_id}", code="internal_error")
            await response(scope, receive, tagged)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        limit = self._limits.get(scope["path"], MAX_JSON_BYTES)
        seen = 0

        async def counted() -> Message:
            """Reject a body by its Content-Length before reading it; without one, count the bytes as they come."""
            nonlocal seen
            declared = 0 if seen else next((int(v) for k, v in scope["headers"] if k == b"content-length"), 0)
            message: Message = {} if declared > limit else await receive()
            seen += len(message.get("body", b""))
            if max(seen, declared) > limit:
                # An HTTPException, because FastAPI turns any other error while it reads a body into a 400.
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        return counted
