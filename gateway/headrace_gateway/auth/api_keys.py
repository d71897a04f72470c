"""API keys, and the sessions that browsers hold in their place.

Invariants: a key and a session's token are with their holder alone, here are their SHA-256 sums; a key that is revoked
or has expired ends every session that it began.
"""

from __future__ import annotations

import hashlib
import secrets
import time

import msgspec
from redis.asyncio import Redis

from headrace_core.errors import Damaged, NotAuthenticated, NotFound
from headrace_core.jobs.job_store import new_id
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record, log_damaged_once, none_if_damaged

from ..principal import OpenedBy, Principal
from ..scopes import Scope

PREFIX = "hr-"
SESSION_SECONDS = 12 * 3600


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key; times in Unix seconds."""

    id: str
    name: str
    """Whose it is: jobs and files belong to names, so that a key can be replaced by another."""
    scope: Scope
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    """To the minute; kept beside the record."""

    @property
    def principal(self) -> Principal:
        """The principal that holds the key."""
        return Principal(self.id, self.name, self.scope)

    def why_not(self, now: float) -> str | None:
        """Why it opens nothing (any more); None where it does."""
        if self.revoked_at is not None:
            return "this API key was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "this API key has expired"
        return None


def key_of(record: bytes) -> ApiKey:
    """What is kept of a key. Raises `NotAuthenticated` where that cannot be read: such a key opens nothing."""
    try:
        return decode_record(record, ApiKey, keys.API_KEYS)
    except Damaged as error:
        log_damaged_once(error)
        raise NotAuthenticated("what is kept of this API key is damaged: ask for another key") from error


def digest(secret: str | bytes) -> str:
    """Under what a key or a token is kept.

    One round of SHA-256 is right here: with 256 random bits there is nothing to guess, whatever a guess costs, and slow
    sums with salt are for passwords that people choose. Looking up the sum also makes the comparison's time tell
    nothing: who tries keys does not choose the sums.
    """
    return hashlib.sha256(secret if isinstance(secret, bytes) else secret.encode()).hexdigest()


class KeyStore:
    """All keys and sessions, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, name: str, scope: Scope, expires_in: float | None = None) -> tuple[ApiKey, str]:
        """(what is kept, the key itself, which nobody can show again). `expires_in` in seconds; None: never."""
        now = time.time()
        secret = PREFIX + secrets.token_urlsafe(32)
        expires = None if expires_in is None else now + expires_in
        key = ApiKey(id=new_id("key_"), name=name, scope=scope, created_at=now, expires_at=expires)
        await run(self._redis.hset(keys.API_KEYS, digest(secret), msgspec.json.encode(key)))
        return key, secret

    async def all(self) -> list[ApiKey]:
        """Newest first, also those that open nothing any more."""
        return [key for _, key in await self._records()]

    async def revoke(self, key_id: str) -> tuple[ApiKey, bool]:
        """From now on it opens nothing; once revoked, a key stays so. (the key, whether it was not yet). Raises
        `NotFound`."""
        for found, key in await self._records():
            if key.id == key_id:
                if key.revoked_at is not None:
                    return key, False
                revoked = msgspec.structs.replace(key, revoked_at=time.time(), last_used_at=None)
                await run(self._redis.hset(keys.API_KEYS, found, msgspec.json.encode(revoked)))
                return revoked, True
        raise NotFound(f"no key {key_id!r}", param="key_id")

    async def any_valid(self) -> bool:
        """Whether somebody can get in."""
        now = time.time()
        return any(key.why_not(now) is None for key in await self.all())

    async def open_session(self, secret: str) -> tuple[ApiKey, str]:
        """(the key, the token of a new session). Raises `NotAuthenticated`."""
        found = digest(secret)
        key = await self._valid(found)
        token = secrets.token_urlsafe(32)
        await run(self._redis.set(keys.session(digest(token)), found, ex=SESSION_SECONDS))
        return key, token

    async def holder(self, token: str) -> ApiKey:
        """Whose session it is. Raises `NotAuthenticated`."""
        found = await run(self._redis.get(keys.session(digest(token))))
        return await self._valid("" if found is None else found.decode(errors="replace"))

    async def close_session(self, token: str) -> ApiKey | None:
        """Nothing is opened by it any more. Whose it was; None of a session that is none, which is no error."""
        try:
            holder = await self.holder(token)
        except NotAuthenticated:
            holder = None
        ended = await run(self._redis.delete(keys.session(digest(token))))
        return holder if ended else None

    async def check(self, shown: OpenedBy) -> None:
        """Whether what let a request in would still do. Raises `NotAuthenticated`."""
        found = shown.key
        if shown.session:
            begun = await run(self._redis.get(keys.session(shown.session)))
            if begun is None:
                raise NotAuthenticated("this session has ended")
            found = begun.decode(errors="replace")
        await self._valid(found)

    async def _valid(self, found: str) -> ApiKey:
        raw = await run(self._redis.hget(keys.API_KEYS, found))
        if raw is None:
            raise NotAuthenticated("this is no API key of this gateway")
        key = key_of(raw)
        if (why := key.why_not(time.time())) is not None:
            raise NotAuthenticated(why)
        return key

    async def _records(self) -> list[tuple[bytes, ApiKey]]:
        """(SHA-256 of the key, what is known of it), newest first."""
        raw = await run(self._redis.hgetall(keys.API_KEYS))
        used = await run(self._redis.hgetall(keys.API_KEYS_USED))
        found = []
        for sum_, record in raw.items():
            field = sum_.decode(errors="replace")
            key = none_if_damaged(decode_record, record, ApiKey, f"{keys.API_KEYS} {field}")
            if key is not None:
                last = (
                    none_if_damaged(decode_record, used[sum_], float, f"{keys.API_KEYS_USED} {field}")
                    if sum_ in used
                    else None
                )
                found.append((sum_, msgspec.structs.replace(key, last_used_at=last)))
        return sorted(found, key=lambda item: (-item[1].created_at, item[1].id))
