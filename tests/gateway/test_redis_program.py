"""Which program is started as the embedded Redis, and what is known of its version."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_core.errors import Unavailable
from headrace_core.redis_access.client import connect, run
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_gateway.service.redis_program import Version, executable, version_from, version_of


def test_the_one_of_the_package_has_no_known_flaw() -> None:
    version = version_of(executable())
    assert version.kind == "Valkey"
    assert version.flaws is None


@pytest.mark.parametrize(
    ("kind", "number", "remedy"),
    [
        ("Redis", (7, 0, 15), "Redis 7.2.11"),
        ("Redis", (7, 2, 10), "Redis 7.2.11"),
        ("Redis", (7, 2, 11), None),
        ("Redis", (8, 1, 0), "Redis 8.2.2"),
        ("Redis", (8, 2, 2), None),
        ("Redis", (8, 4, 0), None),
        ("Valkey", (7, 2, 4), "Valkey 7.2.11"),
        ("Valkey", (8, 1, 1), "Valkey 8.1.4"),
        ("Valkey", (8, 1, 10), None),
        ("Valkey", (9, 0, 0), None),
    ],
)
def test_a_version_with_known_flaws_is_named_with_the_first_that_has_none(
    kind: str, number: tuple[int, int, int], remedy: str | None
) -> None:
    told = Version(kind, number).flaws
    if remedy is None:
        assert told is None
    else:
        assert told is not None
        assert "CVE-2025-49844" in told
        assert f"Take {remedy} or a later one" in told


async def test_a_server_that_runs_says_the_same_as_its_program(redis: Redis) -> None:
    assert version_from(await run(redis.info("server"))) == version_of(executable())
    assert version_from({"redis_version": "7.4.2"}) == Version("Redis", (7, 4, 2))
    assert version_from({}) is None


def _program(folder: Path, says: str) -> Path:
    program = folder / "server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


def test_what_cannot_serve_is_refused_with_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"HEADRACE_REDIS_SERVER: .*/none is no file"):
        RedisServer(tmp_path, program=tmp_path / "none").start()
    with pytest.raises(Unavailable, match="is no redis-server or valkey-server: it says 'something else'"):
        RedisServer(tmp_path, program=_program(tmp_path, "something else")).start()
    with pytest.raises(Unavailable, match=r"is Redis 6.2.14: take Redis 7.0, Valkey, or a later one"):
        RedisServer(tmp_path, program=_program(tmp_path, "Redis server v=6.2.14 sha=0 malloc=libc")).start()
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(Unavailable, match="cannot be run"):
        RedisServer(tmp_path, program=plain).start()


async def test_a_program_of_the_machine_is_started(tmp_path: Path) -> None:
    own = tmp_path / "own-server"
    own.symlink_to(executable())
    server = RedisServer(tmp_path / "redis", program=own)
    server.start()
    redis = connect(server.url)
    started = (await run(redis.info("server")))["executable"]
    await redis.aclose()
    server.stop()
    assert started == str(own)
