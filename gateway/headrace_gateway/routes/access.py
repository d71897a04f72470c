"""/v1/headrace/keys and /v1/headrace/audit: who may come in, and what they did. For admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field

from ..auth.api_keys import ApiKey
from ..auth.audit_log import AuditEntry, Log
from ..context import Context
from ..principal import admin, note_created_id, unchanged
from ..schemas.access import Audited, AuditLog, CreatedKey, KeyObject, Keys, RevokedKey
from ..schemas.base import RequestModel
from ..scopes import NAME, Scope
from ..web.durable_route import DurableRoute
from ..web.pagination import page

router = APIRouter(prefix="/v1/headrace", tags=["access"], dependencies=[Depends(admin)], route_class=DurableRoute)

_TEN_YEARS = 10 * 366 * 86_400

KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-f]{24}$", description="Id of the key, as in the list of keys.")]
Limit = Annotated[int, Query(ge=1, le=1000)]


class CreateKey(RequestModel):
    """The body of POST /v1/headrace/keys."""

    name: str = Field(
        pattern=NAME, description="Name of the key's owner; jobs and files belong to names.", examples=["alice"]
    )
    scope: Scope = Field(
        "user", description="`user`: access to the owner's jobs and files; `admin`: access to everything."
    )
    expires_in: int | None = Field(None, ge=1, le=_TEN_YEARS, description="Seconds; null: the key does not expire.")


@router.post("/keys", response_model=CreatedKey)
async def create_key(here: Context, request: Request, body: CreateKey) -> CreatedKey:
    """Make an API key. It is in this answer, and nobody can show it again."""
    key, secret = await here.keys.create(body.name, body.scope, body.expires_in)
    note_created_id(request, key.id)
    return {**_shown(key), "key": secret}


@router.get("/keys", response_model=Keys)
async def list_keys(
    here: Context, after: Annotated[str | None, Query(max_length=64)] = None, limit: Limit = 100
) -> Keys:
    """What is known of every key, newest first, also of those that were revoked or have expired."""
    keys, has_more = page(await here.keys.all(), after, limit)
    return {"object": "list", "data": [_shown(key) for key in keys], "has_more": has_more}


@router.delete("/keys/{key_id}", response_model=RevokedKey)
async def revoke_key(here: Context, request: Request, key_id: KeyId) -> RevokedKey:
    """Revoke a key: from the next request on it opens nothing, nor do the sessions that it began."""
    _, changed = await here.keys.revoke(key_id)
    if not changed:
        unchanged(request)
    return {"id": key_id, "object": "headrace.key", "deleted": True}


@router.get("/audit", response_model=AuditLog)
async def audit(
    here: Context,
    log: Log = "changes",
    after: Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,18}-[0-9]{1,19}$")] = None,
    limit: Limit = 100,
) -> AuditLog:
    """Who did what, newest first: `changes`; `refusals` of holders of keys; what was refused without one,
    `unauthenticated`."""
    entries, has_more = await here.audit.page(log, after, limit)
    return {"object": "list", "data": [_written(i, entry) for i, entry in entries], "has_more": has_more}


def _shown(key: ApiKey) -> KeyObject:
    return {
        "object": "headrace.key",
        "id": key.id,
        "name": key.name,
        "scope": key.scope,
        "created_at": int(key.created_at),
        "expires_at": None if key.expires_at is None else int(key.expires_at),
        "last_used_at": None if key.last_used_at is None else int(key.last_used_at),
        "revoked_at": None if key.revoked_at is None else int(key.revoked_at),
    }


def _written(entry_id: str, entry: AuditEntry) -> Audited:
    return {
        "object": "headrace.audit_entry",
        "id": entry_id,
        "time": entry.time,
        "by": entry.by,
        "key_id": entry.key_id,
        "scope": entry.scope,
        "address": entry.address,
        "method": entry.method,
        "path": entry.path,
        "made": entry.made,
        "status": entry.status,
        "request_id": entry.request_id,
    }
