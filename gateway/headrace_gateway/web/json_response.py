"""JSON responses encoded by msgspec: for a large list, FastAPI's encoding through pydantic takes many times as long as
reading it.

Routes that use it still declare a `response_model`, for the OpenAPI document; tests check that the two agree.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi.responses import Response

CLIENT_LEFT = 499
"""Status of a response whose client has disconnected."""
_encoder = msgspec.json.Encoder()


def encoded_json(json: bytes | msgspec.Raw) -> Any:
    """Embed bytes that are JSON already in a response body; they are not encoded again."""
    return msgspec.Raw(json)


def json_response(body: Any) -> Response:
    """A JSON response of plain values and `msgspec.Raw` pieces. NaN and infinity become null, since JSON has
    neither."""
    return Response(_encoder.encode(body), media_type="application/json")
