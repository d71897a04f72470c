"""Virtual time: the clock jumps, a real ledger takes none of it, and a loop that waits for nothing says so."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

import pytest

from headrace_core.ledger.ledger import Ledger
from headrace_core.types.staleness import Limits
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.virtual.virtual_time import InlineRedis, Stalled, run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_clock_jumps_from_timer_to_timer_in_their_order() -> None:
    seen: list[tuple[float, str]] = []

    async def sleeper(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        seen.append((now(), name))

    async def main() -> None:
        await asyncio.gather(sleeper(7200.0, "b"), sleeper(90000.5, "c"), sleeper(3.25, "a"))

    run(main())
    assert seen == [(3.25, "a"), (7200.0, "b"), (90000.5, "c")]  # beyond a day, asyncio's longest wait


def test_a_wait_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.sleep(5.0)
        await asyncio.Event().wait()

    with pytest.raises(Stalled, match=r"5\.000 s"):
        run(main())


def test_a_reader_of_the_ledger_wakes_at_the_moment_of_the_write_or_at_its_limit(redis_server: RedisServer) -> None:
    woken: list[tuple[float, bool]] = []

    async def listen(ledger: Ledger) -> None:
        last = "0"
        for _ in range(3):
            heard = await ledger.signal(last, 10.0)
            woken.append((now(), heard != last))
            last = heard

    async def main() -> None:
        redis = InlineRedis(redis_server.url)
        ledger = Ledger(cast(Any, redis), f"ftjob-{uuid.uuid4()}", now)
        await ledger.open(Limits(batch_size=1, max_staleness=0, total_groups=1))
        listener = asyncio.create_task(listen(ledger))
        await asyncio.sleep(12.5)
        (lease,) = (await ledger.admit("w", 0, 1, 60.0)).leases  # no signal: nobody waits for a lease
        await asyncio.sleep(1.5)
        await ledger.release([lease])
        assert now() == 14.0  # real commands took no virtual time
        await listener
        assert [t.at for t in await ledger.history(lease.group_id)] == [12.5, 14.0]
        await redis.aclose()

    run(main())
    assert woken == [(10.0, False), (14.0, True), (24.0, False)]
