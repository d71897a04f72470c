"""API keys, and the sessions of browsers that logged in with one.

Invariants: keys and session tokens are never stored, only their SHA-256 sums; when a key expires or is revoked, every
session that it opened ends.
"""

from __future__ import annotations

import hashlib
import secrets
import time

import msgspec
from redis.asyncio import Redis

from headrace_core.errors import Damaged, NotAuthenticated, NotFound
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record, log_damaged_once, none_if_damaged
from headrace_core.types.job import new_id

from ..principal import OpenedBy, Principal
from ..scopes import Scope

PREFIX = "hr-"
SESSION_SECONDS = 12 * 3600


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a key; times in Unix seconds."""

    id: str
    name: str
    """The key's owner. Jobs and files belong to names, so that a key can be replaced by another of the same name."""
    scope: Scope
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    """To the minute; stored in a hash of its own, beside the record."""

    @property
    def principal(self) -> Principal:
        """The principal that holds the key."""
        return Principal(self.id, self.name, self.scope)

    def rejection(self, now: float) -> str | None:
        """Why the key is not valid any more; None if it is valid."""
        if self.revoked_at is not None:
            return "this API key was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "this API key has expired"
        return None


def decode_key(record: bytes) -> ApiKey:
    """Decode the record of a key. Raises `NotAuthenticated` if it is damaged: such a key is not valid."""
    try:
        return decode_record(record, ApiKey, keys.API_KEYS)
    except Damaged as error:
        log_damaged_once(error)
        raise NotAuthenticated("what is kept of this API key is damaged: ask for another key") from error


def digest(secret: str | bytes) -> str:
    """The SHA-256 sum under which a key or a token is stored.

    One round of SHA-256 suffices: the secrets have 256 random bits and cannot be guessed, however cheap a guess is.
    Slow salted hashes are for passwords, which people choose. The lookup by the sum leaks nothing by its timing either,
    because an attacker does not choose the sums.
    """
    return hashlib.sha256(secret if isinstance(secret, bytes) else secret.encode()).hexdigest()


class KeyStore:
    """All keys and sessions, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, name: str, scope: Scope, expires_in: float | None = None) -> tuple[ApiKey, str]:
        """Create a key; returns (its record, the secret, which cannot be shown again). `expires_in`: seconds; None:
        never."""
        now = time.time()
        secret = PREFIX + secrets.token_urlsafe(32)
        expires = None if expires_in is None else now + expires_in
        key = ApiKey(id=new_id("key_"), name=name, scope=scope, created_at=now, expires_at=expires)
        await run(self._redis.hset(keys.API_KEYS, digest(secret), msgspec.json.encode(key)))
        return key, secret

    async def all(self) -> list[ApiKey]:
        """All keys, newest first, including those that are not valid any more."""
        return [key for _, key in await self._records()]

    async def revoke(self, key_id: str) -> tuple[ApiKey, bool]:
        """Revoke a key for good; returns (the key, whether it was not revoked before). Raises `NotFound`."""
        for key_digest, key in await self._records():
            if key.id == key_id:
                if key.revoked_at is not None:
                    return key, False
                revoked = msgspec.structs.replace(key, revoked_at=time.time(), last_used_at=None)
                await run(self._redis.hset(keys.API_KEYS, key_digest, msgspec.json.encode(revoked)))
                return revoked, True
        raise NotFound(f"no key {key_id!r}", param="key_id")

    async def any_valid(self) -> bool:
        """Whether there is a valid key."""
        now = time.time()
        return any(key.rejection(now) is None for key in await self.all())

    async def open_session(self, secret: str) -> tuple[ApiKey, str]:
        """Open a session with a key; returns (the key's record, the session's token). Raises `NotAuthenticated`."""
        key_digest = digest(secret)
        key = await self._valid_key(key_digest)
        token = secrets.token_urlsafe(32)
        await run(self._redis.set(keys.session(digest(token)), key_digest, ex=SESSION_SECONDS))
        return key, token

    async def session_key(self, token: str) -> ApiKey:
        """The key that opened the session. Raises `NotAuthenticated`."""
        key_digest = await run(self._redis.get(keys.session(digest(token))))
        return await self._valid_key("" if key_digest is None else key_digest.decode(errors="replace"))

    async def close_session(self, token: str) -> ApiKey | None:
        """Close a session; returns the key that opened it. None if there is no such session, which is no error."""
        try:
            session_key = await self.session_key(token)
        except NotAuthenticated:
            session_key = None
        ended = await run(self._redis.delete(keys.session(digest(token))))
        return session_key if ended else None

    async def check(self, shown: OpenedBy) -> None:
        """Check that the credentials of an earlier request are still valid. Raises `NotAuthenticated`."""
        key_digest = shown.key
        if shown.session:
            begun = await run(self._redis.get(keys.session(shown.session)))
            if begun is None:
                raise NotAuthenticated("this session has ended")
            key_digest = begun.decode(errors="replace")
        await self._valid_key(key_digest)

    async def _valid_key(self, key_digest: str) -> ApiKey:
        raw = await run(self._redis.hget(keys.API_KEYS, key_digest))
        if raw is None:
            raise NotAuthenticated("this is no API key of this gateway")
        key = decode_key(raw)
        if (why := key.rejection(time.time())) is not None:
            raise NotAuthenticated(why)
        return key

    async def _records(self) -> list[tuple[bytes, ApiKey]]:
        """(SHA-256 of the key, its record) of all keys, newest first."""
        raw = await run(self._redis.hgetall(keys.API_KEYS))
        used = await run(self._redis.hgetall(keys.API_KEYS_USED))
        records = []
        for sum_, record in raw.items():
            field = sum_.decode(errors="replace")
            key = none_if_damaged(decode_record, record, ApiKey, f"{keys.API_KEYS} {field}")
            if key is not None:
                last = (
                    none_if_damaged(decode_record, used[sum_], float, f"{keys.API_KEYS_USED} {field}")
                    if sum_ in used
                    else None
                )
                records.append((sum_, msgspec.structs.replace(key, last_used_at=last)))
        return sorted(records, key=lambda item: (-item[1].created_at, item[1].id))
