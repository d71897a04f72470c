"""Which queued jobs get a controller."""

from __future__ import annotations

from headrace_controller.queue_window import MAX_UNPLACEABLE, QueueWindow
from headrace_core.planning.resource_plan import Plan

ONE = Plan(({"CPU": 1.0}, {"CPU": 1.0}))
WITH_GPU = Plan(({"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.5}))


def taken(window: QueueWindow, plans: list[Plan | None]) -> list[int]:
    """The places in the queue whose jobs get one."""
    found = []
    for place, plan in enumerate(plans):
        if window.takes(plan):
            found.append(place)
        if window.full:
            break
    return found


def test_what_fits_or_the_next_one() -> None:
    """Not both: the next one might ask Ray before those that fit, and have what they wait for."""
    assert taken(QueueWindow({"CPU": 4.0}), [ONE] * 1000) == [0, 1]
    assert taken(QueueWindow({"CPU": 3.0}), [ONE] * 1000) == [0]
    assert taken(QueueWindow({"CPU": 1.0}), [ONE] * 1000) == [0]
    assert taken(QueueWindow({}), [ONE] * 1000) == [0]


def test_a_small_job_does_not_pass_a_large_one_that_waits() -> None:
    large = Plan(({"CPU": 8.0},))
    assert taken(QueueWindow({"CPU": 4.0}), [large, ONE, ONE]) == [0]


def test_every_resource_counts() -> None:
    assert taken(QueueWindow({"CPU": 64.0, "GPU": 3.0}), [WITH_GPU] * 9) == [0, 1]


def test_one_that_no_node_takes_keeps_no_other_from_its_place() -> None:
    assert taken(QueueWindow({"CPU": 2.0}), [None, ONE, None, ONE, ONE]) == [0, 1, 2]
    assert taken(QueueWindow({"CPU": 2.0}), [None] * 99 + [ONE] * 9) == [*range(MAX_UNPLACEABLE), 99]
    assert taken(QueueWindow({}), [None, ONE, ONE]) == [0, 1]
