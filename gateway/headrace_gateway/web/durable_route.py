"""Answers a request that changes state only when Redis has the change on its disk, so that it survives a power loss.

If Redis becomes unavailable at that moment, the request is answered all the same, because the change was made."""

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

DURABLE_SECONDS = 3.0
"""Longest wait for the disk: a client would take a longer one for a lost answer, and retry."""
_READING = {"GET", "HEAD"}


class DurableRoute(APIRoute):
    """The `route_class` of routers whose requests change state in Redis."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Overrides FastAPI's method: the function that handles a request."""
        handle = super().get_route_handler()
        if self.methods <= _READING:
            return handle

        async def handle_durably(request: Request) -> Response:
            response = await handle(request)
            try:
                await wait_until_durable(request.app.state.gateway.redis, DURABLE_SECONDS)
            except (RedisError, Unavailable) as error:
                log.warning("a change may not be on the disk yet", path=ascii(request.url.path), error=str(error))
            return response

        return handle_durably
