"""How long something has been still, by a clock that does not run while nobody looks."""

from __future__ import annotations

import asyncio

from headrace_controller.workers.liveness import MAX_COUNTED_SECONDS, PingMonitor, StallTimer


def test_what_changes_is_not_still_and_what_stays_is() -> None:
    clock = [0.0]
    still = StallTimer(lambda: clock[0])
    seen = []
    for now in ("a", "a", "a", "b", "b"):
        seen.append(still.observe(now))
        clock[0] += 1.0
    assert seen == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_a_minute_in_which_nobody_looked_counts_as_one_look() -> None:
    clock = [0.0]
    still = StallTimer(lambda: clock[0])
    still.observe("a")
    clock[0] = 60.0
    assert still.observe("a") == MAX_COUNTED_SECONDS
    still.begin()
    clock[0] = 61.0
    assert still.observe("a") == 1.0


async def test_a_pulse_is_silent_only_while_an_answer_is_owed() -> None:
    answers = asyncio.Event()

    async def ask() -> None:
        await answers.wait()

    clock = [0.0]
    pulse = PingMonitor(ask, lambda: clock[0])
    assert pulse.silent() == 0.0
    await asyncio.sleep(0.01)
    clock[0] = 0.5
    assert pulse.silent() == 0.5
    answers.set()
    await asyncio.sleep(0.01)
    assert pulse.silent() == 0.0
    pulse.stop()
