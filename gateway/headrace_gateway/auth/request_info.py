"""What the access check needs of a request: its method and path, its credentials, its origin."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from starlette.requests import cookie_parser
from starlette.types import Scope

from .api_keys import digest
from .authenticate import Kind

SESSION_COOKIE = "headrace_session"
READS = frozenset({"GET", "HEAD", "OPTIONS"})
_PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json", "/login", "/logout", "/favicon.ico"})
_PUBLIC_FOLDER = "/dashboard/"
_CHANGES_NOTHING = frozenset(
    {"/v1/chat/completions", "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"}
)
_JOB_PATH = re.compile(r"/v1/fine_tuning/jobs/([^/]+)")
_FILE_PATH = re.compile(r"/v1/files/([^/]+)")
_USED_HEADERS = frozenset({b"authorization", b"cookie", b"host", b"origin", b"referer", b"sec-fetch-site"})


@dataclass(slots=True)
class RequestInfo:
    """One request. `response_headers`: headers that the access check adds to the response."""

    method: str
    path: str
    query: str
    address: str
    headers: dict[bytes, bytes]
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, scope: Scope) -> RequestInfo:
        """Extract the information from an ASGI request."""
        client = scope.get("client")
        headers = {name: value for name, value in scope["headers"] if name in _USED_HEADERS}
        query = scope["query_string"].decode("latin-1")
        return cls(scope["method"], scope["path"], query, "" if client is None else client[0], headers)

    @property
    def reads(self) -> bool:
        """Whether the method is a safe one, which changes nothing."""
        return self.method in READS

    @property
    def changes(self) -> bool:
        """Whether the request may change something, and so belongs in the audit log."""
        return not self.reads and self.path not in _CHANGES_NOTHING

    @property
    def is_public(self) -> bool:
        """Whether the request needs no key: static files, health checks, the login page."""
        return self.path in _PUBLIC or self.path.startswith(_PUBLIC_FOLDER)

    @property
    def is_for_a_page(self) -> bool:
        """Whether this is a page, from which a browser without a session is redirected to the login."""
        return self.reads and not self.path.startswith("/v1") and self.path != "/metrics"

    @property
    def resource(self) -> tuple[Kind, str] | None:
        """(kind, id) of the job or file that the path names."""
        if match := _JOB_PATH.match(self.path):
            return "job", match[1]
        if match := _FILE_PATH.match(self.path):
            return "file", match[1]
        return None

    @property
    def key(self) -> str:
        """SHA-256 of the bearer token; empty without one."""
        scheme, _, secret = self.headers.get(b"authorization", b"").partition(b" ")
        return digest(secret.strip()) if scheme.lower() == b"bearer" else ""

    @property
    def session(self) -> str:
        """SHA-256 of the token in the session cookie; empty without one."""
        cookies = cookie_parser(self.headers.get(b"cookie", b"").decode("latin-1"))
        return digest(cookies[SESSION_COOKIE]) if SESSION_COOKIE in cookies else ""

    @property
    def network(self) -> str:
        """The unit of the rate limit for requests without a key: an IPv4 address, or an IPv6 /64, which one subscriber
        has."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return self.address
        if isinstance(address, ipaddress.IPv4Address):
            return self.address
        return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))

    @property
    def host(self) -> str:
        """The Host header in lower case: the name and port that the client used for the gateway."""
        return self.headers.get(b"host", b"").decode("latin-1").lower()

    @property
    def foreign_page(self) -> str | None:
        """The origin of a page of another site that sent this request; None if there is none.

        Browsers name the origin of a change, in one of several headers. A request without any of them is not from a
        browser.
        """
        site = self.headers.get(b"sec-fetch-site")
        if site in (b"same-origin", b"none"):
            return None
        if (origin := self._origin(b"origin")) is not None:
            return None if origin.partition("://")[2] == self.host else origin
        if site is not None:
            return f"another site ({site.decode('latin-1')})"
        referer = self._origin(b"referer")
        return None if referer is None or referer.partition("://")[2].partition("/")[0] == self.host else referer

    def _origin(self, header: bytes) -> str | None:
        return self.headers[header].decode("latin-1").lower() if header in self.headers else None
