"""What is run together ends together; and once the work is done, nobody who is late or fails undoes it."""

from __future__ import annotations

import asyncio

import pytest

from headrace_core.concurrency import until


async def fails() -> None:
    raise RuntimeError("broken")


async def test_an_error_beside_the_work_ends_it() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        await until([asyncio.Event().wait()], [fails()])


@pytest.mark.parametrize("late", [True, False])
async def test_once_the_work_is_done_nobody_who_is_late_or_fails_undoes_it(late: bool) -> None:
    told, ended = asyncio.Event(), list[str]()

    async def beside() -> None:
        try:
            await told.wait()
            await (asyncio.Event().wait() if late else fails())
        finally:
            ended.append("beside")

    async def finish() -> None:
        told.set()

    await until([asyncio.sleep(0)], [beside()], finish, limit=0.05)
    assert ended == ["beside"]
