"""/v1/headrace/keys and /v1/headrace/audit: who may come in, and what they did. For admins."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ..auth.api_keys import ApiKey
from ..auth.audit_log import AuditEntry, Log
from ..context import Context
from ..principal import admin, note_created_id, unchanged
from ..scopes import NAME, Scope
from ..web.durable_route import DurableRoute
from ..web.pagination import page

router = APIRouter(prefix="/v1/headrace", tags=["access"], dependencies=[Depends(admin)], route_class=DurableRoute)

_TEN_YEARS = 10 * 366 * 86_400

KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-f]{24}$", description="As the list of keys has it.")]
Limit = Annotated[int, Query(ge=1, le=1000)]


class CreateKey(BaseModel):
    """The body of POST /v1/headrace/keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME, description="Whose key it is: jobs and files belong to names.", examples=["alice"])
    scope: Scope = Field("user", description="`user` sees what is its own, `admin` everything.")
    expires_in: int | None = Field(None, ge=1, le=_TEN_YEARS, description="Seconds; null: it does not expire.")


class KeyObject(BaseModel):
    """What is known of a key; never the key."""

    object: Literal["headrace.key"] = "headrace.key"
    id: str
    name: str
    scope: Scope
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="To the minute.")
    revoked_at: int | None


class CreatedKey(KeyObject):
    """A new key: the only answer that ever holds `key`."""

    key: str = Field(examples=["hr-…"])


class Keys(BaseModel):
    """A page of keys."""

    object: Literal["list"] = "list"
    data: list[KeyObject]
    has_more: bool


class RevokedKey(BaseModel):
    """What DELETE answers."""

    id: str
    object: Literal["headrace.key"] = "headrace.key"
    deleted: Literal[True] = True


class Audited(BaseModel):
    """One request in the audit log."""

    object: Literal["headrace.audit_entry"] = "headrace.audit_entry"
    id: str
    time: float = Field(description="Unix seconds.")
    by: str = Field(description="Name of the caller's key; empty without a valid one, `local` where none is asked for.")
    key_id: str
    scope: str
    address: str
    method: str
    path: str
    made: str | None = Field(description="Id of what the request made.")
    status: int = Field(description="Of the answer; 0 where the change began, and how it ended is not known.")
    request_id: str


class AuditLog(BaseModel):
    """A page of the audit log."""

    object: Literal["list"] = "list"
    data: list[Audited]
    has_more: bool


@router.post("/keys", response_model=CreatedKey)
async def create_key(here: Context, request: Request, body: CreateKey) -> CreatedKey:
    """Make an API key. It is in this answer, and nobody can show it again."""
    key, secret = await here.keys.create(body.name, body.scope, body.expires_in)
    note_created_id(request, key.id)
    return CreatedKey(**_shown(key).model_dump(), key=secret)


@router.get("/keys", response_model=Keys)
async def list_keys(
    here: Context, after: Annotated[str | None, Query(max_length=64)] = None, limit: Limit = 100
) -> Keys:
    """What is known of every key, newest first, also of those that were revoked or have expired."""
    found, has_more = page(await here.keys.all(), after, limit)
    return Keys(data=[_shown(key) for key in found], has_more=has_more)


@router.delete("/keys/{key_id}", response_model=RevokedKey)
async def revoke_key(here: Context, request: Request, key_id: KeyId) -> RevokedKey:
    """Revoke a key: from the next request on it opens nothing, nor do the sessions that it began."""
    _, changed = await here.keys.revoke(key_id)
    if not changed:
        unchanged(request)
    return RevokedKey(id=key_id)


@router.get("/audit", response_model=AuditLog)
async def audit(
    here: Context,
    log: Log = "changes",
    after: Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,18}-[0-9]{1,19}$")] = None,
    limit: Limit = 100,
) -> AuditLog:
    """Who did what, newest first: `changes`; `refusals` of holders of keys; what was refused without one,
    `unauthenticated`."""
    found, has_more = await here.audit.page(log, after, limit)
    return AuditLog(data=[_written(i, entry) for i, entry in found], has_more=has_more)


def _shown(key: ApiKey) -> KeyObject:
    return KeyObject(
        id=key.id,
        name=key.name,
        scope=key.scope,
        created_at=int(key.created_at),
        expires_at=None if key.expires_at is None else int(key.expires_at),
        last_used_at=None if key.last_used_at is None else int(key.last_used_at),
        revoked_at=None if key.revoked_at is None else int(key.revoked_at),
    )


def _written(entry_id: str, entry: AuditEntry) -> Audited:
    return Audited(id=entry_id, **{name: getattr(entry, name) for name in entry.__struct_fields__})
