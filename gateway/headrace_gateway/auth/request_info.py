"""A request as the access check sees it: what it asks for, what identifies its caller, where it comes from."""

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
_OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/login", "/logout", "/favicon.ico"})
_OPEN_FOLDER = "/dashboard/"
_CHANGES_NOTHING = frozenset(
    {"/v1/chat/completions", "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"}
)
_OF_A_JOB = re.compile(r"/v1/fine_tuning/jobs/([^/]+)")
_OF_A_FILE = re.compile(r"/v1/files/([^/]+)")
_WANTED = frozenset({b"authorization", b"cookie", b"host", b"origin", b"referer", b"sec-fetch-site"})


@dataclass(slots=True)
class RequestInfo:
    """One request. `response_headers` are what the access check adds to its answer."""

    method: str
    path: str
    query: str
    address: str
    headers: dict[bytes, bytes]
    response_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, scope: Scope) -> RequestInfo:
        """The information in an ASGI request."""
        client = scope.get("client")
        shown = {name: value for name, value in scope["headers"] if name in _WANTED}
        query = scope["query_string"].decode("latin-1")
        return cls(scope["method"], scope["path"], query, "" if client is None else client[0], shown)

    @property
    def reads(self) -> bool:
        """Whether its method promises to change nothing."""
        return self.method in READS

    @property
    def changes(self) -> bool:
        """Whether it may change something, and so belongs in the audit log."""
        return not self.reads and self.path not in _CHANGES_NOTHING

    @property
    def is_public(self) -> bool:
        """Whether it needs no key: what is the same for everybody, and the way in."""
        return self.path in _OPEN or self.path.startswith(_OPEN_FOLDER)

    @property
    def is_for_a_page(self) -> bool:
        """Whether a browser that has to log in first should be led there."""
        return self.reads and not self.path.startswith("/v1") and self.path != "/metrics"

    @property
    def resource(self) -> tuple[Kind, str] | None:
        """The job or the file that the path names."""
        if found := _OF_A_JOB.match(self.path):
            return "job", found[1]
        if found := _OF_A_FILE.match(self.path):
            return "file", found[1]
        return None

    @property
    def key(self) -> str:
        """SHA-256 of the bearer key; empty without one."""
        scheme, _, secret = self.headers.get(b"authorization", b"").partition(b" ")
        return digest(secret.strip()) if scheme.lower() == b"bearer" else ""

    @property
    def session(self) -> str:
        """SHA-256 of the token in the session's cookie; empty without one."""
        cookies = cookie_parser(self.headers.get(b"cookie", b"").decode("latin-1"))
        return digest(cookies[SESSION_COOKIE]) if SESSION_COOKIE in cookies else ""

    @property
    def network(self) -> str:
        """What is counted together where no key is shown: an IPv4 address, or the /64 that one holder of IPv6 has."""
        try:
            found = ipaddress.ip_address(self.address)
        except ValueError:
            return self.address
        if isinstance(found, ipaddress.IPv4Address):
            return self.address
        return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))

    @property
    def host(self) -> str:
        """The Host header: name and port by which the gateway was asked for."""
        return self.headers.get(b"host", b"").decode("latin-1").lower()

    @property
    def foreign_page(self) -> str | None:
        """The origin of the page that sent this, where it is not one of ours.

        Browsers say where a change comes from, though not all in the same header; what says nothing is no browser's.
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
