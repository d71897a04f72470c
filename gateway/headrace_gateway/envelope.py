"""Every answer carries `x-request-id`; every error is `{"error": {message, type, param, code}}`, whatever raised it.

A wrong state is 400, never 409: OpenAI's client retries 409 by itself.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_core.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    RateLimited,
    TooLarge,
    Unavailable,
)
from headrace_core.hyperparameters import Hyperparameters
from headrace_core.logs import get_logger
from headrace_core.redis import away, passing

log = get_logger(__name__)

MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_LOGIN_BYTES = 16 * 1024
"""Of what anybody may send, without a key."""
_MULTIPART_OVERHEAD = 64 * 1024
_STATUS = (
    (TooLarge, 413), (InvalidRequest, 400), (NotAuthenticated, 401), (Forbidden, 403), (NotFound, 404),
    (RateLimited, 429), (Unavailable, 503),
)  # fmt: skip


def error_response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """The envelope. `type` follows the status, as in OpenAI's API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": _written(message), "type": kind, "param": param and _written(param), "code": code}
    return JSONResponse(
        {"error": error},
        status_code=status,
        headers={"x-should-retry": "true" if status in (429, 503) else "false"},
    )


def _written(text: str) -> str:
    """What a request said may hold halves of characters, which no answer can."""
    return text.encode(errors="replace").decode()


def answer_to(error: HeadraceError) -> JSONResponse:
    """The envelope of one of our own errors."""
    status = next((s for kind, s in _STATUS if isinstance(error, kind)), 500)
    response = error_response(status, error.message, param=error.param, code=error.code)
    if isinstance(error, Unavailable) and error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


def redis_trouble(error: RedisError) -> Unavailable:
    """What a caller is told where Redis cannot be reached, or says that it will answer later. Raises any other error as
    it is: a wrong command, or data that is not what it should be, is no trouble that passes."""
    if isinstance(error, ConnectionError | TimeoutError) or passing(error):
        return away(error)
    raise error


def install(app: FastAPI, max_upload_bytes: int) -> None:
    """Handlers for every error, and the middleware around all routes."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HeadraceError)
        return answer_to(error)

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
        return answer_to(redis_trouble(error))

    async def not_unicode(_: Request, error: Exception) -> JSONResponse:
        # JSON's escapes can spell half a character, and Python reads it: it fails where it is to be written down.
        return error_response(400, "the body's text is not Unicode: a surrogate stands alone", code="invalid_json")

    app.add_exception_handler(HeadraceError, known)
    app.add_exception_handler(UnicodeEncodeError, not_unicode)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RedisError, no_redis)
    app.add_middleware(Envelope, max_upload_bytes=max_upload_bytes)


def explain(error: dict[str, Any]) -> tuple[str, str | None, str]:
    """(message, param, code) of one pydantic error."""
    path = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    param = ".".join(path) or None
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']}", None, "invalid_json"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown name {path[-1]!r}{_did_you_mean(path)}"
    return (f"{param}: {message}" if param else message), param, str(error["type"])


def _did_you_mean(path: Sequence[str]) -> str:
    if "hyperparameters" not in path:
        return ""
    near = difflib.get_close_matches(path[-1], Hyperparameters.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(Hyperparameters.model_fields)}"


class Envelope:
    """Request id, limit of the body, and the last resort for an error that nothing else names."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        login = dict.fromkeys(("/login", "/logout"), MAX_LOGIN_BYTES)
        self._limits = {"/v1/files": max_upload_bytes + _MULTIPART_OVERHEAD, **login}
        """Bytes of a body, by path."""

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
            """Nothing is read of a body that says it is too large; one that says nothing is counted as it comes."""
            nonlocal seen
            said = 0 if seen else next((int(v) for k, v in scope["headers"] if k == b"content-length"), 0)
            message: Message = {} if said > limit else await receive()
            seen += len(message.get("body", b""))
            if max(seen, said) > limit:
                # An HTTPException, because FastAPI turns any other error met while it reads a body into a 400.
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        return counted
