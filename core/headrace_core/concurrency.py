"""Structured concurrency: no task outlives the call that began it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_CANCEL_AGAIN = 0.5
"""Seconds after which a task that is still running is cancelled again."""
UNDO_SECONDS = 5.0
"""Longest wait of a cancellation for what is to be undone first."""


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


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first error cancels the rest, waits for them to end, and is raised as it is."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


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
        pending = {*tasks, *others}
        while not all(task.done() for task in tasks):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        if finish is not None:
            await finish()
            if others:
                await asyncio.wait(others, timeout=limit)
    finally:
        await cancel([*tasks, *others])


async def taken_or_undone(
    taking: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[Any]], limit: float = UNDO_SECONDS
) -> T:
    """What `taking` returns. A caller that is cancelled meanwhile leaves nothing taken: `taking` is let come to its
    end, and `undo` is called with what it returned.

    For what another process grants. It may have granted it already when the caller is cancelled, whose answer is on its
    way. The cancellation waits `limit` seconds at most; what is not undone by then is left to its own expiry, as is
    what an error kept from being undone, which is the cause of the `CancelledError`.
    """
    task = asyncio.ensure_future(taking)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        ending = asyncio.ensure_future(_undone(task, undo, limit))
        while not ending.done():
            with suppress(asyncio.CancelledError):  # of who cancels again
                await asyncio.wait([ending])
        error = None if ending.cancelled() else ending.exception()
        raise cancelled from error


async def _undone(task: asyncio.Future[T], undo: Callable[[T], Awaitable[Any]], limit: float) -> None:
    async with asyncio.timeout(limit):
        await undo(await task)
