"""Processes of the simulated loop: they die at once, stand still, and leave no trace of their afterlife."""

from __future__ import annotations

import asyncio

import pytest

from headrace_simulation.virtual_loop import Process, SimulatedLoop, Stalled


def new_loop() -> SimulatedLoop:
    return SimulatedLoop()  # type: ignore[abstract]  # what it lacks, no task asks of it


class Diary:
    """One process that ticks once a second, and says when it unwinds."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.loop, self.process = loop, Process(name)
        self.ticks: list[float] = []
        self.unwound: list[float] = []
        self.reached: list[str] = []
        self.task = loop.spawn(self.process, self._tick)

    async def _tick(self) -> None:
        try:
            for _ in range(4):
                await asyncio.sleep(1.0)
                self.ticks.append(self.loop.now)
        finally:
            self.unwound.append(self.loop.now)
            self.process.check()
            self.reached.append("the world")


def run(loop: SimulatedLoop) -> None:
    with pytest.raises(Stalled, match="no timer is set"):
        loop.pump(100.0)


def test_time_passes_when_nothing_is_ready() -> None:
    loop = new_loop()
    diary = Diary(loop, "a")
    run(loop)
    assert diary.ticks == [1.0, 2.0, 3.0, 4.0]
    assert diary.reached == ["the world"]


def test_a_dead_process_unwinds_at_once_and_reaches_nothing() -> None:
    loop = new_loop()
    dies, lives = Diary(loop, "dies"), Diary(loop, "lives")
    loop.after(1.5, loop.kill, dies.process)
    run(loop)
    assert dies.ticks == [1.0]
    assert dies.unwound == [1.5]
    assert dies.reached == []
    assert len(lives.ticks) == 4


def test_a_stopped_process_runs_what_was_due_when_it_goes_on() -> None:
    loop = new_loop()
    diary = Diary(loop, "a")
    loop.after(1.5, loop.stop_process, diary.process)
    loop.after(7.25, loop.go_on, diary.process)
    run(loop)
    assert diary.ticks == [1.0, 7.25, 8.25, 9.25]


def test_a_limit_in_virtual_time_ends_a_wait() -> None:
    loop = new_loop()
    ended: list[float] = []

    async def waits() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2.5)
        ended.append(loop.now)

    loop.spawn(Process("a"), waits)
    run(loop)
    assert ended == [2.5]


def test_the_world_is_answered_between_two_steps() -> None:
    loop = new_loop()
    loop.after(3.0, loop.interrupt)
    assert loop.pump(10.0)
    assert loop.now == 3.0
    loop.after(20.0, loop.interrupt)
    assert not loop.pump(10.0)
