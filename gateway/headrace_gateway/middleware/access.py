"""Access control: every request passes through this middleware before any route, and so does every response.

    request ─► Envelope ─► from another site's page? ─► rate limit, key, owner of the job or file ─► routes
                                    │ 403                        │ 429 · 401 · 404                     │
    response ◄────────────── rate-limit headers ◄── audit log of changes and refused requests ◄────────┘

Invariants, if keys are required: every path that is not `RequestInfo.is_public` needs a key, including routes added
later; a job or file of another owner gets the same response as one that does not exist, on every route; a route finds
its caller in `request.state.principal`, or fails. If keys are not required, every caller is `LOCAL`, and a read takes
no round trip to Redis.

It is plain ASGI middleware, so that streams pass through unbuffered.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import time
from typing import Any
from urllib.parse import quote

from fastapi.responses import RedirectResponse, Response
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Forbidden, HeadraceError, NotAuthenticated, NotFound, RateLimited
from headrace_core.logs import get_logger

from ..auth.audit_log import MAX_PATH, AuditEntry
from ..auth.authenticate import AuthResult, authenticate
from ..auth.request_info import RequestInfo
from ..context import GatewayContext
from ..principal import ANONYMOUS, LOCAL, OpenedBy, Principal
from ..web.errors import as_unavailable, error_response_for

log = get_logger(__name__)

_PARAMS = {"job": "fine_tuning_job_id", "file": "file_id"}
_REFUSED = (401, 403, 429)
_HOST = re.compile(r"(?P<name>\[(?P<address>[0-9a-f:.]+)\]|[^\[\]:]+)(:[0-9]{1,5})?")
"""A name, an IPv4 address or an IPv6 address in brackets, and a port."""


class AccessMiddleware:
    """Middleware around all routes."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._required = settings.keys_required
        self._per_minute = settings.counted_per_minute
        self._open_metrics = settings.open_metrics
        names = {"localhost", socket.gethostname().lower(), settings.host.lower()}
        self._names = names | {name.lower() for name in settings.host_names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websocket routes; one would bypass the keys
            raise RuntimeError(f"{scope['type']} is not served")
        info = RequestInfo.of(scope)
        gateway: GatewayContext = scope["app"].state.gateway
        state = scope["state"]
        state["principal"] = ANONYMOUS
        try:
            await self._identify(info, gateway, state)
        except RedisError as error:
            await error_response_for(as_unavailable(error))(scope, receive, send)
            return
        except HeadraceError as error:
            await _refusal(info, error)(scope, receive, _AuditedSend(info, gateway, scope, send))
            return
        if info.reads and state["principal"] is LOCAL and not info.response_headers:
            await self._app(scope, receive, send)
            return
        answer = _AuditedSend(info, gateway, scope, send)
        try:
            await answer.begin()
        except (RedisError, HeadraceError) as error:  # a change that cannot be recorded is not made
            refusal = as_unavailable(error) if isinstance(error, RedisError) else error
            await error_response_for(refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, answer)
        except Exception:
            await answer.failed()
            raise

    async def _identify(self, info: RequestInfo, gateway: GatewayContext, state: dict[str, Any]) -> None:
        """Identify the caller. Raises `Forbidden`, `RateLimited`, `NotAuthenticated`, `NotFound`."""
        if not self._required:
            self._check_host(info)
        if not info.reads:
            _check_origin(info)
        without_key = not self._required or (info.path == "/metrics" and self._open_metrics)
        if without_key:
            state["principal"] = LOCAL
        if (info.is_public and info.reads) or (without_key and not self._per_minute):
            return
        session = "" if b"authorization" in info.headers else info.session
        auth = await authenticate(
            gateway.redis,
            key=info.key if self._required else "",
            session=session if self._required else "",
            address=info.network,
            per_minute=self._per_minute,
            resource=info.resource if self._required else None,
        )
        if not without_key and (key := auth.key) is not None and key.rejection(time.time()) is None:
            state["principal"] = key.principal
            state["opened_by"] = OpenedBy(info.key, session)
        self._check_rate(info, auth)
        if not (without_key or info.is_public):
            _check_key(info, auth, by_cookie=bool(session))

    def _check_host(self, info: RequestInfo) -> None:
        """Check the Host header if no key is required, against DNS rebinding: a page of another site can make its own
        name resolve to this machine, and would then count as the same origin. That is impossible for a bare address."""
        if b"host" not in info.headers:  # not from a browser
            return
        match = _HOST.fullmatch(info.host)
        name = match["name"] if match else info.host
        if name in self._names:
            return
        try:
            ipaddress.ip_address(match["address"] or name if match else name)
        except ValueError:
            raise Forbidden(
                f"this gateway asks for no keys, and does not know itself by the name {name[:100]!r}: use its address, "
                "or name it in HEADRACE_HOST_NAMES, or require keys",
                code="unknown_host",
            ) from None

    def _check_rate(self, info: RequestInfo, auth: AuthResult) -> None:
        if not self._per_minute:
            return
        rate_headers = {
            "x-ratelimit-limit-requests": str(self._per_minute),
            "x-ratelimit-remaining-requests": str(auth.remaining),
            "x-ratelimit-reset-requests": f"{auth.reset:.3f}s",
        }
        if not auth.allowed:
            rate_headers["retry-after"] = str(math.ceil(auth.retry_after))
            rate_headers["retry-after-ms"] = str(math.ceil(auth.retry_after * 1000))
        info.response_headers += [(name.encode(), value.encode()) for name, value in rate_headers.items()]
        if not auth.allowed:
            raise RateLimited(f"more than {self._per_minute} requests a minute; come again in {auth.retry_after:.1f} s")


def _check_origin(info: RequestInfo) -> None:
    """Raises `Forbidden` for a request of another site's page (CSRF), sent with the session of a user, or from a
    browser that can reach this machine."""
    if (page := info.foreign_page) is not None:
        raise Forbidden(
            f"a page of {page[:100]} may change nothing here; if it is ours, behind a proxy, let the proxy pass on the "
            "Host header",
            code="foreign_origin",
        )


def _check_key(info: RequestInfo, auth: AuthResult, *, by_cookie: bool) -> None:
    """Check that the key is valid, and allows the request. Raises `NotAuthenticated`, `Forbidden`, `NotFound`."""
    key = auth.key
    if key is None:
        sent_credentials = b"authorization" in info.headers or by_cookie
        raise NotAuthenticated(
            "this is no API key of this gateway"
            if sent_credentials
            else "an API key is needed: send `Authorization: Bearer hr-…`; `headrace keys create` makes one"
        )
    if (why := key.rejection(time.time())) is not None:
        raise NotAuthenticated(why)
    if by_cookie and not info.reads and b"origin" not in info.headers:
        raise Forbidden("a change by cookie needs an Origin header, as browsers send it", code="foreign_origin")
    if info.path == "/metrics" and key.scope != "admin":
        raise Forbidden("/metrics shows everybody's jobs: it needs a key of scope 'admin'")
    if info.resource is not None and not key.principal.sees(auth.owner or ""):
        kind, name = info.resource
        if kind == "job" or auth.owner is not None:  # an unknown file passes: the route may create it
            raise NotFound(f"no {kind} {name!r}", param=_PARAMS[kind])


def _refusal(info: RequestInfo, error: HeadraceError) -> Response:
    if isinstance(error, NotAuthenticated):
        if info.is_for_a_page:
            page = f"{info.path}?{info.query}" if info.query else info.path
            return RedirectResponse(f"/login?next={quote(page)}", 303)
        info.response_headers.append((b"www-authenticate", b'Bearer realm="headrace"'))
    return error_response_for(error)


class _AuditedSend:
    """Wraps `send` of one request: adds the access headers, and writes the audit log before the response is sent."""

    def __init__(self, info: RequestInfo, gateway: GatewayContext, scope: Scope, send: Send) -> None:
        self._info = info
        self._audit = gateway.audit
        self._state = scope["state"]
        self._send = send
        self._started = False
        self._begun = False

    async def begin(self) -> None:
        """Before the route: record a change by a known caller. Raises errors of Redis."""
        if self._info.changes and self._state["principal"] is not ANONYMOUS:
            await self._audit.begin(self._entry(0))
            self._begun = True

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": [*message["headers"], *self._info.response_headers]}
            await self._write(message["status"])
        await self._send(message)

    async def failed(self) -> None:
        """The route raised an error without a response."""
        if not self._started:
            await self._write(500)

    async def _write(self, status: int) -> None:
        changed = self._info.changes and not self._state.get("unchanged", False)
        try:
            if status in _REFUSED or (changed and (status >= 400 or self._state["principal"] is not ANONYMOUS)):
                await self._audit.write(self._entry(status))
            elif self._begun:
                await self._audit.drop(self._state["request_id"])
        except (RedisError, HeadraceError) as error:
            if status < 400 and changed and not self._begun:  # a login: without its response there is no session
                raise
            log.warning("the end of a request is not in the audit log", status=status, error=str(error))

    def _entry(self, status: int) -> AuditEntry:
        principal: Principal = self._state["principal"]
        return AuditEntry(
            time=time.time(),
            by=principal.name,
            key_id=principal.key_id,
            scope="" if principal is ANONYMOUS else principal.scope,
            address=self._info.address,
            method=self._info.method,
            path=self._info.path[:MAX_PATH],
            made=self._state.get("made"),
            status=status,
            request_id=self._state["request_id"],
        )
