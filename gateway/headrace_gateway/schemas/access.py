"""API keys and the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..scopes import Scope
from .base import ResponseModel


class KeyObject(ResponseModel):
    """What is known of a key; never the key."""

    object: Literal["headrace.key"]
    id: str
    name: str
    scope: Scope
    created_at: int
    expires_at: int | None
    last_used_at: Annotated[int | None, Field(description="To the minute.")]
    revoked_at: int | None


class CreatedKey(KeyObject):
    """A new key: the only answer that ever holds `key`."""

    key: Annotated[str, Field(examples=["hr-…"])]


class Keys(ResponseModel):
    """A page of keys."""

    object: Literal["list"]
    data: list[KeyObject]
    has_more: bool


class RevokedKey(ResponseModel):
    """What DELETE answers."""

    id: str
    object: Literal["headrace.key"]
    deleted: Literal[True]


class Audited(ResponseModel):
    """One request in the audit log."""

    object: Literal["headrace.audit_entry"]
    id: str
    time: Annotated[float, Field(description="Unix seconds.")]
    by: Annotated[
        str,
        Field(description="Name of the caller's key; empty without a valid one, `local` where none is asked for."),
    ]
    key_id: str
    scope: str
    address: str
    method: str
    path: str
    made: Annotated[str | None, Field(description="Id of what the request made.")]
    status: Annotated[int, Field(description="Of the answer; 0 where the change began, and how it ended is not known.")]
    request_id: str


class AuditLog(ResponseModel):
    """A page of the audit log."""

    object: Literal["list"]
    data: list[Audited]
    has_more: bool
