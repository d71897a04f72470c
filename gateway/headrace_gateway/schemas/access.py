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
    last_used_at: Annotated[int | None, Field(description="Time of the last use, to the minute.")]
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
        Field(description="Name of the caller's key; empty without a valid key, `local` if none is required."),
    ]
    key_id: str
    scope: str
    address: str
    method: str
    path: str
    made: Annotated[str | None, Field(description="Id of the object that the request created.")]
    status: Annotated[int, Field(description="Status of the response; 0 if the change began and its end is unknown.")]
    request_id: str


class AuditLog(ResponseModel):
    """A page of the audit log."""

    object: Literal["list"]
    data: list[Audited]
    has_more: bool
