"""Tasks end with the call that began them, even one that swallows a cancellation; what runs together ends together."""

from __future__ import annotations

import asyncio

import pytest

from headrace_core.concurrency import acquire_or_undo, cancel, first_to_end, run_with_background, while_moving


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


class Granter:
    """Grants a thing, and answers when it is let."""

    def __init__(self, error: Exception | None = None) -> None:
        self.held: list[str] = []
        self.answers = asyncio.Event()
        self._error = error

    async def take(self) -> str:
        self.held.append("thing")
        await self.answers.wait()
        if self._error is not None:
            raise self._error
        return "thing"

    async def undo(self, what: str) -> None:
        await asyncio.sleep(0)
        self.held.remove(what)


async def test_what_is_taken_is_kept_where_nobody_cancels() -> None:
    granter = Granter()
    granter.answers.set()
    assert await acquire_or_undo(granter.take(), granter.undo) == "thing"
    assert granter.held == ["thing"]


async def test_what_was_granted_to_a_caller_that_was_cancelled_is_undone_however_often_it_is_cancelled() -> None:
    granter = Granter()
    task = asyncio.create_task(acquire_or_undo(granter.take(), granter.undo))
    for _ in range(5):
        await asyncio.sleep(0.01)
        task.cancel()
    assert (granter.held, task.done()) == (["thing"], False), "it waits for the answer"
    granter.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert granter.held == []


async def test_a_caller_cancelled_at_the_moment_of_the_answer_holds_nothing() -> None:
    granter = Granter()
    task = asyncio.create_task(acquire_or_undo(granter.take(), granter.undo))
    await asyncio.sleep(0.01)
    granter.answers.set()
    for _ in range(20):  # at every turn until the caller would have it
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task], timeout=5)
    assert (task.cancelled(), granter.held) == (True, [])


async def test_a_cancellation_waits_no_longer_than_its_limit_for_an_answer() -> None:
    granter = Granter()
    task = asyncio.create_task(acquire_or_undo(granter.take(), granter.undo, limit=0.05))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await asyncio.wait_for(task, 5)
    assert isinstance(cancelled.value.__cause__, TimeoutError)
    assert len(asyncio.all_tasks()) == 1, "nothing goes on behind it"


async def test_an_error_of_what_is_to_be_taken_is_raised_and_of_a_cancelled_caller_the_cause() -> None:
    granter = Granter(ValueError("refused"))
    task = asyncio.create_task(acquire_or_undo(granter.take(), granter.undo))
    await asyncio.sleep(0.01)
    task.cancel()
    granter.answers.set()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert isinstance(cancelled.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="refused"):
        await acquire_or_undo(granter.take(), granter.undo)


async def fails() -> None:
    raise RuntimeError("broken")


async def test_an_error_beside_the_work_ends_it() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        await run_with_background([asyncio.Event().wait()], [fails()])


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

    await run_with_background([asyncio.sleep(0)], [beside()], finish, limit=0.05)
    assert ended == ["beside"]


async def test_work_may_take_as_long_as_it_moves() -> None:
    moved = 0

    async def work(steps: int) -> str:
        nonlocal moved
        for _ in range(steps):
            await asyncio.sleep(0.05)
            moved += 1
        return "done"

    async def measure() -> int:
        return moved

    assert await while_moving(work(20), 0.2, measure, moved) == "done"
    stuck = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError, match=r"nothing moved for 0.2 s"):
        await while_moving(stuck, 0.2, measure, moved)
    assert stuck.cancelled()
