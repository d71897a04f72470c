"""Turns errors into responses: `{"error": {message, type, param, code}}`.

An invalid state is 400, never 409, because OpenAI's client retries 409 by itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from headrace_core.config.hyperparameters import Hyperparameters
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
from headrace_core.redis_access.client import is_transient, unavailable

from ..schemas.base import ErrorAnswer, ErrorDetail

_STATUS = (
    (TooLarge, 413), (InvalidRequest, 400), (NotAuthenticated, 401), (Forbidden, 403), (NotFound, 404),
    (RateLimited, 429), (Unavailable, 503),
)  # fmt: skip


def error_response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error response. Its `type` follows from the status, as in OpenAI's API."""
    error: ErrorDetail = {
        "message": _encodable(message),
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": param and _encodable(param),
        "code": code,
    }
    return JSONResponse(
        ErrorAnswer(error=error),
        status_code=status,
        headers={"x-should-retry": "true" if status in (429, 503) else "false"},
    )


def _encodable(text: str) -> str:
    """The text without lone surrogates, which a request can contain but no response can encode."""
    return text.encode(errors="replace").decode()


def error_response_for(error: HeadraceError) -> JSONResponse:
    """The error response of a `HeadraceError`."""
    status = next((s for kind, s in _STATUS if isinstance(error, kind)), 500)
    response = error_response(status, error.message, param=error.param, code=error.code)
    if isinstance(error, Unavailable) and error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


def as_unavailable(error: RedisError) -> Unavailable:
    """The error for a Redis that is unreachable, or reports a transient state. Raises any other error unchanged: a
    wrong command or wrong data does not resolve itself."""
    if isinstance(error, ConnectionError | TimeoutError) or is_transient(error):
        return unavailable(error)
    raise error


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
