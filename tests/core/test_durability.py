"""What is said to be on the disk is: as the kernel was told, not as the server says."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_core.redis_access.client import connect, run
from headrace_core.redis_access.durability import wait_until_durable
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.waiting import wait_until


@contextmanager
def traced(server: RedisServer, calls: Path) -> Iterator[None]:
    """What the server writes and writes through, call by call, to `calls`."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-s", "256", "-e", "trace=write,fdatasync,fsync", "-o", calls, "-p", str(server.pid)]
    )
    try:
        status = Path(f"/proc/{server.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "strace is attached", pause=0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


@pytest.mark.slow
async def test_durable_returns_after_the_kernel_has_written_the_file_through(
    own_redis: RedisServer, own_client: Redis, tmp_path: Path
) -> None:
    assert shutil.which("strace"), "`make setup-dev` brings it where it runs as root; else install Debian's strace"
    calls = tmp_path / "calls"
    with traced(own_redis, calls):
        for number in range(4):  # within one second: the server's own write-through comes at most once in it
            await own_client.set("key", f"value-{number}")
            assert await wait_until_durable(own_client)
            await own_client.set("key", f"after-{number}")
    told = calls.read_text()
    for number in range(4):
        written, after = told.index(f"value-{number}"), told.index(f"after-{number}")
        assert re.search(r"(fdatasync|fsync)\(\d+\)?.*= 0", told[written:after]), f"write {number} was not on the disk"


async def test_the_server_is_left_as_it_was(own_client: Redis) -> None:
    await own_client.set("a", "1")
    assert await asyncio.gather(*(wait_until_durable(own_client) for _ in range(3))) == [True] * 3
    assert (await own_client.config_get("appendfsync")) == {"appendfsync": "everysec"}


async def test_without_an_append_only_file_nothing_is_durable(own_client: Redis) -> None:
    await own_client.config_set("appendonly", "no")
    assert not await wait_until_durable(own_client)


async def test_one_that_may_not_configure_valkey_does_not_take_its_word(
    own_redis: RedisServer, own_client: Redis
) -> None:
    """Its WAITAOF answers too soon."""
    await run(
        own_client.acl_setuser("bound", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-config"])
    )
    async with connect(own_redis.url.replace("unix://", "unix://bound:p@"), wait=5.0) as bound:
        await bound.set("a", "1")
        assert not await wait_until_durable(bound)
