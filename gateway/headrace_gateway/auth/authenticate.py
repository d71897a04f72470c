"""Authenticates a request and applies the rate limit: whose key it has, whether the caller may make another request
now, and who owns the job or file that it names.

It takes one round trip to Redis. The rate limit is a token bucket that holds a minute's requests and refills over time.
It is stored as a single number, the time up to which requests are paid for: each request moves it ahead by its share of
a minute, and is rejected if that would put it more than a minute into the future.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys

from ..files.file_store import owner_of
from .api_keys import ApiKey, decode_key

# KEYS: keys.ADMISSION_SCRIPT. ARGV: SHA-256 of a key or "", of a session token or "", address, requests a minute or 0.
# Returns {record of the key or '', 1 if the request is within the limit, requests left, milliseconds until the bucket
# is full, milliseconds until another request is allowed}.
_SCRIPT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local digest = ARGV[1]
if digest == '' and ARGV[2] ~= '' then digest = redis.call('GET', KEYS[3] .. ARGV[2]) or '' end
local record = digest ~= '' and redis.call('HGET', KEYS[1], digest) or ''
local who = 'address:' .. ARGV[3]
if record ~= '' then
  local good, key = pcall(cjson.decode, record)
  good = good and type(key) == 'table' and type(key.id) == 'string' and key.revoked_at == cjson.null
  if good and (key.expires_at == cjson.null or (tonumber(key.expires_at) or 0) > now) then
    who = key.id
    local used = redis.call('HGET', KEYS[2], digest)
    if math.abs(now - (tonumber(used) or 0)) >= 60 then
      redis.call('HSET', KEYS[2], digest, string.format('%d', math.floor(now)))
    end
  end
end
local rate = tonumber(ARGV[4])
if rate == 0 then return {record, 1, 0, 0, 0} end
local before = math.max(tonumber(redis.call('GET', KEYS[4] .. who) or 0) or 0, now)
if before > now + 61 then before = now end  -- paid for by a clock that has been set back since
local after = before + 60 / rate
if after > now + 60.000001 then
  return {record, 0, 0, math.ceil((before - now) * 1000), math.ceil((after - now - 60) * 1000)}
end
redis.call('SET', KEYS[4] .. who, string.format('%.6f', after), 'PX', math.ceil((after - now) * 1000))
return {record, 1, math.floor((now + 60 - after) * rate / 60 + 0.000001), math.ceil((after - now) * 1000), 0}
"""
_SHA = hashlib.sha1(_SCRIPT.encode()).hexdigest()

Kind = Literal["job", "file"]


@dataclass(frozen=True, slots=True)
class AuthResult:
    """The result of `authenticate`; times in seconds."""

    key: ApiKey | None
    """The request's key, valid or not; None without a key, and for a key that was never issued."""
    allowed: bool
    """Whether the request is within its caller's rate limit."""
    remaining: int
    reset: float
    retry_after: float
    owner: str | None
    """Owner of the job or file that the request names; None if there is no such resource."""


async def authenticate(
    redis: Redis, *, key: str, session: str, address: str, per_minute: int, resource: tuple[Kind, str] | None
) -> AuthResult:
    """Authenticate and count a request. `key`, `session`: SHA-256 sums, or empty; `per_minute`: the rate limit."""
    try:
        result, owner = await _run_script(redis, (key, session, address, per_minute), resource)
    except NoScriptError:  # Redis was restarted, or is new
        await run(redis.script_load(_SCRIPT))
        result, owner = await _run_script(redis, (key, session, address, per_minute), resource)
    record, allowed, remaining, reset, retry = result
    known = decode_key(record) if record else None
    return AuthResult(known, bool(allowed), remaining, reset / 1000, retry / 1000, owner)


async def _run_script(
    redis: Redis, arguments: tuple[Any, ...], resource: tuple[Kind, str] | None
) -> tuple[Any, str | None]:
    script = (_SHA, len(keys.ADMISSION_SCRIPT), *keys.ADMISSION_SCRIPT, *arguments)
    if resource is None:
        return await run(redis.evalsha(*script)), None
    kind, name = resource
    async with redis.pipeline(transaction=False) as pipe:
        pipe.evalsha(*script)
        if kind == "job":
            pipe.hget(JobKeys(name).job, "owner")
        else:
            pipe.hget(keys.FILES, name)
        result, raw = await pipe.execute()
    if raw is None:
        return result, None
    return result, raw.decode(errors="replace") if kind == "job" else owner_of(name, raw)
