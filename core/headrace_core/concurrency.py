"""Structured concurrency: no task outlives the call that began it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_CANCEL_AGAIN = 0.5
"""Seconds after which a task that is still running is cancelled again."""


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
    """Cancel what still runs and wait until it has ended.

    Again and again: in Python 3.11 `asyncio.wait_for` swallows a cancellation that arrives together with its result
    (python/cpython#86296, mended in 3.12), and redis-py uses it for every command. May be once, when 3.11 is gone.
    """
    running = {t for t in tasks if not t.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN)
