"""Restarts have a growing delay and an end, and come back to a worker that worked."""

from __future__ import annotations

from headrace_gateway.restarts import Restart, Restarts


def test_the_delay_doubles_up_to_its_longest_until_all_are_used_up() -> None:
    restarts = Restarts(most=7, window=600.0)
    found = [restarts.next(worked=0.0) for _ in range(8)]
    assert [r and r.delay for r in found] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, None]
    assert found[2] == Restart(3, 7, 4.0)


def test_a_worker_that_worked_long_enough_has_all_of_them_again() -> None:
    restarts = Restarts(most=2, window=600.0)
    assert [restarts.next(0.0), restarts.next(599.9), restarts.next(599.9)] == [
        Restart(1, 2, 1.0), Restart(2, 2, 2.0), None
    ]  # fmt: skip
    assert restarts.next(600.0) == Restart(1, 2, 1.0)


def test_without_any_the_first_failure_is_the_last() -> None:
    assert Restarts(most=0, window=1.0).next(worked=5.0) is None
