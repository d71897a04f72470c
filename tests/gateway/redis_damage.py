"""Damage to what Redis keeps, one record at a time: each field, element, member and entry of each key, and one more of
each where nothing belongs. The type of the key stays what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis

from headrace_core.redis_access.client import run

NO_RECORD = b"\xff\xfe\x00"
"""No UTF-8, so no JSON, no number, no name."""
TOO_LARGE = b"1" * 20
"""Digits alone, and beyond every figure that Redis counts with."""


async def damaged_one_by_one(redis: Redis, prefix: str, but: Sequence[str] = ()) -> AsyncIterator[tuple[str, str]]:
    """(key, which record of it is now damaged), of the keys that begin so and do not end with one of `but`; a record is
    mended before the next is damaged."""
    for key in sorted([key async for key in redis.scan_iter(f"{prefix}*")]):
        name = key.decode()
        if name.endswith(tuple(but)):
            continue
        whole, left = await run(redis.dump(key)), await run(redis.pttl(key))
        kind = (await run(redis.type(key))).decode()
        for record in await _records(redis, key, kind):
            await _damage(redis, key, kind, record, NO_RECORD)
            yield name, repr(record)
            await run(redis.restore(key, max(0, left), whole, replace=True))


async def _records(redis: Redis, key: bytes, kind: str) -> list[Any]:
    """What there is, and at last one that there is not."""
    if kind == "hash":
        return [*sorted(await run(redis.hkeys(key))), NO_RECORD]
    if kind == "list":
        return list(range(await run(redis.llen(key)) + 1))
    if kind == "zset":
        return [*await run(redis.zrange(key, 0, -1)), NO_RECORD]
    if kind == "stream":
        found = await run(redis.xrange(key))
        return [*((entry, field) for entry, fields in found for field in fields), (b"", b"data"), (b"", NO_RECORD)]
    return [b"value"]


async def _damage(redis: Redis, key: bytes, kind: str, record: Any, bad: bytes) -> None:
    if kind == "hash":
        await run(redis.hset(key, record, bad))
    elif kind == "list":
        there = record < await run(redis.llen(key))
        await run(redis.lset(key, record, bad) if there else redis.rpush(key, bad))  # type: ignore[arg-type]  # it takes bytes
    elif kind == "zset":
        score = await run(redis.zscore(key, record))
        await run(redis.zrem(key, record))
        await run(redis.zadd(key, {bad: 3.0 if score is None else score}))
    elif kind == "stream":
        await _damage_stream(redis, key, record, bad)
    else:
        await run(redis.set(key, bad, keepttl=True))


async def _damage_stream(redis: Redis, key: bytes, record: tuple[bytes, bytes], bad: bytes) -> None:
    """A stream takes no entry but at its end: it is written anew."""
    entry, field = record
    found = await run(redis.xrange(key))
    await run(redis.delete(key))
    for place, fields in found:
        await run(redis.xadd(key, {**fields, field: bad} if place == entry else fields, id=place))
    if not entry:
        number, _, part = found[-1][0].partition(b"-") if found else (b"0", b"", b"0")
        await run(redis.xadd(key, {field: bad}, id=b"%d-%s" % (int(number) + 1, part)))
