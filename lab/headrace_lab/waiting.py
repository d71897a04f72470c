"""Waits for what tells nobody that it has come: asked for again and again, with a limit and an error that names it."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

LIMIT = 180.0
"""Seconds, unless the caller says otherwise: enough for a machine that is busy with other tests."""
What = str | Callable[[], str]
"""What is waited for, in words; a function where the words say how far it came."""


def wait_until(holds: Callable[[], bool], what: What, seconds: float = LIMIT, pause: float = 0.1) -> None:
    """Ask `holds` every `pause` seconds until it says yes. Raises `AssertionError` with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(_late(what, seconds))
        time.sleep(pause)


async def wait_until_async(
    holds: Callable[[], bool | Awaitable[bool]], what: What, seconds: float = LIMIT, pause: float = 0.02
) -> None:
    """The same beside other tasks. An answer that is not there when the time is up is not waited for."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            while not await _answer(holds()):  # noqa: ASYNC110 (whatever is waited for sets no event)
                await asyncio.sleep(pause)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise AssertionError(_late(what, seconds)) from error


async def _answer(answer: bool | Awaitable[bool]) -> bool:
    return await answer if inspect.isawaitable(answer) else answer


def _late(what: What, seconds: float) -> str:
    return f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
