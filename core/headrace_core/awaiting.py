"""Awaitables that belong together: the first error of any ends all, and none outlives the call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from .concurrency import cancel


async def until(
    main: Iterable[Awaitable[Any]],
    beside: Iterable[Awaitable[Any]] = (),
    finish: Callable[[], Awaitable[None]] | None = None,
    limit: float = 20.0,
) -> None:
    """Run all until all of `main` have returned; the first error of any is raised, and nothing is left running.

    With `finish`, `beside` is told to end by it and has `limit` seconds for that; what it comes to plays no part any
    more: a worker that was just starting again, or fails now, must not undo what is done. Without, it is cancelled.
    """
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in main]
    others: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in beside]
    try:
        await _all_or_first_error(tasks, others)
        if finish is not None:
            await finish()
            if others:
                await asyncio.wait(others, timeout=limit)
    finally:
        await cancel([*tasks, *others])


async def _all_or_first_error(tasks: list[asyncio.Future[Any]], others: list[asyncio.Future[Any]]) -> None:
    pending = {*tasks, *others}
    while not all(task.done() for task in tasks):
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
