"""Structured concurrency: nothing outlives the call that began it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first error cancels the rest, waits for them to end, and is raised as it is."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def first_to_end(tasks: Iterable[asyncio.Task[T]]) -> T:
    """Supervise endless tasks: when one returns or raises, cancel the others and pass its outcome on."""
    tasks = list(tasks)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        failed = next((t for t in done if not t.cancelled() and t.exception() is not None), None)
        return (failed or next(iter(done))).result()
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel what still runs and wait until it has ended."""
    running = [t for t in tasks if not t.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
