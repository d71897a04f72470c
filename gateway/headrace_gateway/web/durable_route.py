"""What a request changed is on the disk of Redis before it is answered: after a loss of power it still holds.

A Redis that goes away just then leaves it open; the answer stays, since the change was made."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from redis.exceptions import RedisError

from headrace_core.errors import Unavailable
from headrace_core.logs import get_logger
from headrace_core.redis_access.durability import wait_until_durable

log = get_logger(__name__)

KEPT_SECONDS = 3.0
"""A disk that needs longer is not waited for: the client would take it for an answer that is lost."""
_READING = {"GET", "HEAD"}


class DurableRoute(APIRoute):
    """The `route_class` of routers whose requests change what is in Redis."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's: what answers a request."""
        handle = super().get_route_handler()
        if self.methods <= _READING:
            return handle

        async def kept(request: Request) -> Response:
            response = await handle(request)
            try:
                await wait_until_durable(request.app.state.gateway.redis, KEPT_SECONDS)
            except (RedisError, Unavailable) as error:
                log.warning("a change may not be on the disk yet", path=ascii(request.url.path), error=str(error))
            return response

        return kept
