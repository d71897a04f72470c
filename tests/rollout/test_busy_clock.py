"""The busy clock: it runs while something is in flight, and stands still while generation is paused."""

from __future__ import annotations

from headrace_rollout.engines.busy_clock import BusyClock


def test_it_counts_from_the_first_request_to_the_last_and_leaves_pauses_out() -> None:
    time = [0.0]
    clock = BusyClock(now=lambda: time[0])
    time[0] = 10.0
    clock.enter()
    time[0] = 11.0
    clock.enter()
    clock.leave()
    time[0] = 13.0
    with clock.paused():
        time[0] = 20.0
    time[0] = 21.0
    clock.leave()
    time[0] = 50.0
    assert clock.seconds == 4.0
