"""The way to Redis: what happens when it is not there, or goes away in the middle of a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_core.errors import Unavailable
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Step, TransitionOutcome
from headrace_core.redis_access.client import acquired, connect, ping
from headrace_core.types.staleness import Limits
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.held_answers import held_answers

from .pipeline import a_group

LIMITS = Limits(batch_size=2, max_staleness=1, total_groups=20)


class LossyProxy:
    """A unix socket in front of Redis that can cut a connection after a script ran, before its answer is out."""

    def __init__(self, server: Path, path: Path) -> None:
        self._server, self._path = server, path
        self._to_lose: list[bytes] = []
        self.lost = 0

    def lose_the_answer_to(self, *words: bytes) -> None:
        """Cut at the next request that holds all of these."""
        self._to_lose = list(words)

    async def __aenter__(self) -> LossyProxy:
        self._listener = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._server))
        request, losing = bytearray(), asyncio.Event()

        async def pass_requests() -> None:
            while part := await reader.read(1 << 16):  # a request may come in parts
                request.extend(part)
                if self._to_lose and all(word in request for word in self._to_lose):
                    self._to_lose, self.lost = [], self.lost + 1
                    losing.set()
                up_writer.write(part)
            up_writer.close()

        passing = asyncio.create_task(pass_requests())
        while answer := await up_reader.read(1 << 16):
            if losing.is_set():
                break
            request.clear()  # one connection asks one thing at a time
            writer.write(answer)
        writer.close()
        up_writer.close()
        passing.cancel()
        await asyncio.gather(passing, writer.wait_closed(), up_writer.wait_closed(), return_exceptions=True)


@pytest.fixture
async def lossy(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[LossyProxy, Ledger]]:
    path = Path(redis_server.socket).with_name(f"lossy-{tmp_path.name[-8:]}.sock")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(LossyProxy(redis_server.socket, path))
        client = connect(f"unix://{path}")
        stack.push_async_callback(client.aclose)
        ledger = Ledger(client, "ftjob-lossy")
        await ledger.open(LIMITS)
        yield proxy, ledger


async def test_calls_whose_answers_are_lost_count_once(lossy: tuple[LossyProxy, Ledger]) -> None:
    proxy, ledger = lossy
    lease, other = (await ledger.admit("rollout-0", 0, 2, 60)).leases
    proxy.lose_the_answer_to(b"EVALSHA", lease.token.encode())
    assert await ledger.commit(lease, a_group(lease.group_id, [0])) is TransitionOutcome.QUEUED
    await ledger.commit(other, a_group(other.group_id, [0]))
    term = await ledger.enlist()
    await ledger.claim(term, Limits(9, 1, 20), "mask")  # takes nothing, asks for the window: its script is loaded now
    proxy.lose_the_answer_to(b"EVALSHA", b"\r\n2\r\n$1\r\n0\r\n$1\r\n1\r\n")  # how many, group 0, group 1
    claim = await ledger.claim(term, LIMITS, "mask")
    assert [g.group_id for g in claim.groups] == [0, 1]
    proxy.lose_the_answer_to(b"EVALSHA", b"v1-t1")
    assert await ledger.settle(term, Step(0, (0, 1), {0: 2}, 0), "v1-t1") is TransitionOutcome.SETTLED
    assert proxy.lost == 3
    books = await ledger.counts()
    assert books.balanced
    assert (books.states["trained"], books.fenced, books.version) == (2, 0, 1)


async def test_a_redis_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/nobody.sock", wait=0.2)
    with pytest.raises(Unavailable, match="Redis does not answer"):
        await ping(client)
    await client.aclose()


async def test_a_lock_that_was_granted_to_a_caller_that_is_cancelled_is_free(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with held_answers(redis_server.url, tmp_path) as held, connect(held.url) as client:
        await ping(client)
        held.hold(b"a-lock")
        waiting = asyncio.create_task(acquired(client.lock("a-lock", timeout=60, blocking_timeout=60)))
        await held.answered()
        assert await redis.exists("a-lock"), "Redis has granted it"
        waiting.cancel()
        await asyncio.sleep(0)
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not await redis.exists("a-lock")
        assert await acquired(client.lock("a-lock", timeout=60, blocking_timeout=0.1))
        assert not await acquired(client.lock("a-lock", timeout=60, blocking_timeout=0.1)), "it is another's"
