"""Who waits for whom, from two heartbeats of each worker."""

from __future__ import annotations

import msgspec

from headrace_controller.wait_graph import WaitGraph
from headrace_core.types.metrics import WorkerMetrics


def beat(worker: str, time: float, running: int = 0, busy: float = 0.0, **waiting: float) -> WorkerMetrics:
    role = "learner" if worker == "learner" else "rollout"
    return WorkerMetrics(
        worker=worker, role=role, time=time, version=3, uptime=time, busy=busy, waiting=waiting, running=running
    )


def told(waits: WaitGraph, **silent: float) -> dict[str, tuple[str, float]]:
    return {wait.who: (wait.for_, wait.seconds) for wait in waits.now(silent)}


def test_the_learner_waits_for_whoever_makes_groups_and_that_one_for_its_reward() -> None:
    waits = WaitGraph()
    for time in (100.0, 102.0, 104.0):
        since = time - 100.0
        waits.add_heartbeats(
            [
                beat("learner", time, busy=80.0, groups=20.0 + since),
                beat("rollout-0", time, busy=90.0, window=1.0, rewards=5.0 + since),
                beat("rollout-1", time, busy=50.0, window=40.0 + since),
            ]
        )
    assert told(waits) == {
        "learner": ("groups of rollout-0", 4.0),
        "rollout-0": ("its reward", 4.0),
        "rollout-1": ("learner", 4.0),
    }
    assert waits.roots() == ["rollout-0"]
    assert str(waits.now({})[0]) == "learner waits for groups of rollout-0 (4 s)"


def test_a_long_training_step_is_what_all_wait_for() -> None:
    waits = WaitGraph()
    for time in (10.0, 12.0):
        waits.add_heartbeats([beat("learner", time, busy=time - 9.0), beat("rollout-0", time, window=time - 9.0)])
    assert told(waits)["learner"] == ("its training step", 3.0)
    assert waits.roots() == ["learner"]


def test_where_each_waits_for_the_other_the_learner_is_the_root() -> None:
    waits = WaitGraph()
    for time in (10.0, 12.0):
        waits.add_heartbeats([beat("learner", time, groups=time - 9.0), beat("rollout-0", time, window=time - 9.0)])
    assert told(waits)["learner"][0] == "groups of rollout workers"
    assert waits.roots() == ["learner"]


def test_a_silent_process_is_named_whatever_it_said_last() -> None:
    waits = WaitGraph()
    waits.add_heartbeats([beat("rollout-0", 10.0, busy=9.0, running=7)])
    assert told(waits) == {"rollout-0": ("its engine, 7 requests in flight", 9.0)}
    found = waits.now({"rollout-0": 31.5}, starting=["learner"])
    assert msgspec.to_builtins(found) == [
        {"who": "rollout-0", "for": "an answer of its process", "seconds": 31.5},
        {"who": "learner", "for": "its start", "seconds": 0.0},
    ]


def test_a_successor_counts_anew() -> None:
    waits = WaitGraph()
    waits.add_heartbeats([beat("learner", 1000.0, busy=900.0, groups=50.0)])
    again = msgspec.structs.replace(beat("learner", 1010.0, busy=1.0, groups=3.0), uptime=4.0)
    waits.add_heartbeats([again])
    assert told(waits)["learner"][0] == "groups of rollout workers"
