"""Tasks end with the call that began them, even one that swallows a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from headrace_core.concurrency import cancel, first_to_end


async def test_a_swallowed_cancellation_is_sent_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed += 1  # what asyncio.wait_for of Python 3.11 does, when its result came at the same moment
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel([task]), 20)
    assert task.cancelled()
    assert swallowed == 1


async def test_the_first_to_end_ends_the_others_and_its_error_is_raised() -> None:
    async def endless() -> str:
        await asyncio.sleep(3600)
        return "never"

    async def broken() -> str:
        raise ValueError("broken")

    other = asyncio.create_task(endless())
    with pytest.raises(ValueError, match="broken"):
        await first_to_end([other, asyncio.create_task(broken())])
    assert other.cancelled()
