"""Who a request is from. Routes that act in somebody's name take `Caller`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from headrace_core.errors import Forbidden

from .scopes import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a key. Two keys of one name are the same person's: what they own, they own by their name."""

    key_id: str
    name: str
    scope: Scope

    def sees(self, owner: str) -> bool:
        """Whether what belongs to `owner` is there for this caller."""
        return self.scope == "admin" or self.name == owner


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """What a request showed, as SHA-256 sums: a key, or the token of a session."""

    key: str
    session: str


LOCAL = Principal("local", "local", "admin")
"""Whoever reaches a gateway that asks for no keys."""

ANONYMOUS = Principal("", "", "user")
"""Whoever shows no key where one is asked for: they reach what is open to all, and own nothing."""


# The dependencies are `async` although they wait for nothing: FastAPI would run each in a thread of its pool.


async def caller(request: Request) -> Principal:
    """Whom the request's key belongs to. It is never guessed: without the middleware in `access`, this fails."""
    principal: Principal = request.state.principal
    return principal


def note_created_id(request: Request, thing: str) -> None:
    """For the audit log: the id of what this request has made."""
    request.state.made = thing


def unchanged(request: Request) -> None:
    """For the audit log: all was already as this request wanted it."""
    request.state.unchanged = True


Caller = Annotated[Principal, Depends(caller)]


async def admin(principal: Caller) -> Principal:
    """The caller, where they are an admin: `Depends(admin)` on a route that is for admins alone. Raises `Forbidden`."""
    if principal.scope != "admin":
        raise Forbidden(f"this needs a key of scope 'admin'; {principal.name!r} has one of scope {principal.scope!r}")
    return principal
