"""The caller of a request. Routes that depend on the caller take `Caller`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from headrace_core.errors import Forbidden

from .scopes import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of an API key. Keys with the same name belong to the same principal: ownership is by name."""

    key_id: str
    name: str
    scope: Scope

    def sees(self, owner: str) -> bool:
        """Whether the caller may see what belongs to `owner`."""
        return self.scope == "admin" or self.name == owner


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """The credentials of a request as SHA-256 sums: of a key, or of a session's token."""

    key: str
    session: str


LOCAL = Principal("local", "local", "admin")
"""The caller of a gateway that requires no keys: may see and do everything."""

ANONYMOUS = Principal("", "", "user")
"""A caller without a valid key at a gateway that requires one: public routes only, and owner of nothing."""


# These dependencies are `async`, although they await nothing: else FastAPI would run each in a thread.


async def caller(request: Request) -> Principal:
    """The request's caller. `AccessMiddleware` sets it; without the middleware this fails rather than guess."""
    principal: Principal = request.state.principal
    return principal


def note_created_id(request: Request, thing: str) -> None:
    """Record, for the audit log, the id of what this request created."""
    request.state.made = thing


def unchanged(request: Request) -> None:
    """Record, for the audit log, that the request changed nothing, because the state was already as requested."""
    request.state.unchanged = True


Caller = Annotated[Principal, Depends(caller)]


async def admin(principal: Caller) -> Principal:
    """`Depends(admin)` restricts a route to admins. Raises `Forbidden` for any other caller."""
    if principal.scope != "admin":
        raise Forbidden(f"this needs a key of scope 'admin'; {principal.name!r} has one of scope {principal.scope!r}")
    return principal
