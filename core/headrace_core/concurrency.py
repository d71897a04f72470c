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
"""How long `acquire_or_undo` delays a cancellation to undo what was acquired."""


async def first_to_end(tasks: Iterable[asyncio.Task[T]]) -> T:
    """Supervise endless tasks: when one ends, cancel the others; return its result or raise its error."""
    tasks = list(tasks)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        failed = next((t for t in done if not t.cancelled() and t.exception() is not None), None)
        return (failed or next(iter(done))).result()
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks that still run and wait until they have ended.

    A task is cancelled repeatedly: in Python 3.11 `asyncio.wait_for` swallows a cancellation that arrives together with
    its result (python/cpython#86296, fixed in 3.12), and redis-py uses it for every command. One cancellation is enough
    once 3.11 is no longer supported.
    """
    running = {t for t in tasks if not t.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN)


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all and return their results in order. The first error cancels the rest, waits for their end, and is raised
    unchanged."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def while_moving(work: Awaitable[T], limit: float, measure: Callable[[], Awaitable[object]], before: object) -> T:
    """The result of `work`, which may take as long as it moves. Raises TimeoutError, and cancels it, after `limit`
    seconds in which `measure` did not change; `before` is its value at the start.

    For work whose duration nobody knows, but which shows how far it is: tokens that a step has computed, for example.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=limit))[0]:
            now = await measure()
            if now == before:
                raise TimeoutError(f"nothing moved for {limit:g} s")
            before = now
        return task.result()
    finally:
        await cancel([task])


async def run_with_background(
    main: Iterable[Awaitable[Any]],
    background: Iterable[Awaitable[Any]] = (),
    finish: Callable[[], Awaitable[None]] | None = None,
    limit: float = 20.0,
) -> None:
    """Run all until all of `main` have returned. Raises the first error of any; nothing is left running.

    Then `background` is cancelled; with `finish`, that is called first to ask it to end, and it has `limit` seconds to
    do so. Its results and errors are ignored from there on: a background worker that was just restarting, or fails now,
    must not turn a finished `main` into a failure.
    """
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in main]
    others: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in background]
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


async def acquire_or_undo(
    acquire: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[Any]], limit: float = UNDO_SECONDS
) -> T:
    """Returns the result of `acquire`. If the caller is cancelled meanwhile, `acquire` still runs to its end and `undo`
    is called with its result, so that nothing stays acquired.

    For something that another process grants (a lease, a lock): the grant may be on its way when the caller is
    cancelled. The cancellation is delayed by at most `limit` seconds. A grant that is not undone by then, or whose
    `undo` fails, must expire by itself; the error is the cause of the `CancelledError`.
    """
    task = asyncio.ensure_future(acquire)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        undoing = asyncio.ensure_future(_undo_result(task, undo, limit))
        while not undoing.done():
            with suppress(asyncio.CancelledError):  # the caller may be cancelled again while it undoes
                await asyncio.wait([undoing])
        error = None if undoing.cancelled() else undoing.exception()
        raise cancelled from error


async def _undo_result(task: asyncio.Future[T], undo: Callable[[T], Awaitable[Any]], limit: float) -> None:
    async with asyncio.timeout(limit):
        await undo(await task)
