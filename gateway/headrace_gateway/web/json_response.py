"""Answers whose bytes are made by msgspec: FastAPI's way through pydantic costs a large list many times its reading.

The routes that use it name a `response_model` all the same, for the OpenAPI document; tests hold the one to the other.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi.responses import Response

CLIENT_LEFT = 499
"""Status of an answer that nobody waits for any more."""
_encoder = msgspec.json.Encoder()


def written(json: bytes | msgspec.Raw) -> Any:
    """What is JSON already, as a value of the shape that it is a part of."""
    return msgspec.Raw(json)


def json_response(body: Any) -> Response:
    """A JSON body of plain values and `msgspec.Raw` pieces; NaN and infinities, which JSON has not, are null."""
    return Response(_encoder.encode(body), media_type="application/json")
