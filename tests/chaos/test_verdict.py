"""The checks of a campaign find lost groups, groups trained twice and versions that decrease."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from headrace_chaos.final_checks import of_job, of_machine
from headrace_chaos.outside_observer import Observer
from headrace_chaos.processes import ProcessTracker, kind_of

JOB = "ftjob-1"
HISTORIES = [["leased", "queued", "claimed", "trained"], ["leased", "leased", "queued", "claimed", "trained"]]


class CannedObserver(Observer):
    """An observer whose service is a dictionary of answers by route."""

    def __init__(self, histories: list[list[str]], **changed: Any) -> None:
        super().__init__(lambda: "http://localhost:1")
        self.follow(JOB, 2)
        self._answers = {
            "": {"id": JOB, "status": "succeeded"},
            "/ledger": ledger(admitted=len(histories)),
            "/metrics?kind=step&limit=10000": {"data": [{"data": {"step": 1}}]},
        } | {f"/ledger/{n}": {"history": [{"state": s} for s in states]} for n, states in enumerate(histories)}
        self._answers |= changed

    def get(self, route: str, limit: float = 0.0) -> Any:
        return self._answers[route]


def ledger(**changed: Any) -> dict[str, Any]:
    whole = {"version": 1, "largest_age": 0, "balanced": True, "admitted": 2, "states": {"trained": 2, "leased": 0}}
    return whole | changed


@pytest.fixture
def observer() -> CannedObserver:
    return CannedObserver(HISTORIES)


def test_a_job_that_kept_its_promises_is_left_in_peace(observer: CannedObserver) -> None:
    assert of_job(observer, steps=1, batch_size=2) == []


@pytest.mark.parametrize(
    ("histories", "found"),
    [
        ([HISTORIES[0], ["leased", "queued", "claimed"]], "group 1 was lost: it is claimed"),
        ([HISTORIES[0], ["leased", "queued", "trained", "queued", "trained"]], "group 1 was trained 2 times"),
        ([HISTORIES[0], ["leased", "trained", "cancelled"]], "group 1 was trained 1 times and ended as cancelled"),
        ([HISTORIES[0]], "the histories end as {'trained': 1}"),
    ],
)
def test_groups_are_judged_by_their_histories(histories: list[list[str]], found: str) -> None:
    assert any(found in violation for violation in of_job(CannedObserver(histories), steps=1, batch_size=2))


@pytest.mark.parametrize(
    ("route", "answer", "found"),
    [
        ("", {"id": JOB, "status": "failed", "error": {"code": "x"}}, "it ended as failed"),
        ("/ledger", ledger(balanced=False), "counts of the ledger do not balance"),
        ("/ledger", ledger(states={"trained": 1, "cancelled": 1}), "1 groups were trained, not 2"),
        ("/metrics?kind=step&limit=10000", {"data": [{"data": {"step": 1}}] * 2}, "steps were reported as [1, 1]"),
    ],
)
def test_jobs_are_judged_by_what_is_told(route: str, answer: dict[str, Any], found: str) -> None:
    assert any(
        found in violation for violation in of_job(CannedObserver(HISTORIES, **{route: answer}), steps=1, batch_size=2)
    )


def test_the_observer_notes_what_it_sees(observer: CannedObserver) -> None:
    observer._check_ledger(ledger(version=5))
    observer._check_ledger(ledger(version=4, largest_age=3, balanced=False))
    observer._check_status({"status": "paused", "paused_by": {"code": "stalled"}})
    observer._check_status({"status": "succeeded"})
    observer._check_status({"status": "running"})
    found = "\n".join(observer.violations)
    for violation in ("version 4 was seen after 5", "of age 3", "do not balance", "paused by itself", "was succeeded"):
        assert violation in found


def test_workers_are_known_by_what_their_events_say(observer: CannedObserver) -> None:
    learner = {"worker": "learner", "device": "cpu", "seconds": 2.5, "pid": 11, "rank 1": "pid 12"}
    rollout = {"worker": "rollout-0", "engine": "vllm", "pid": 13}
    told = [None, learner, {"worker": "learner", "restart": 1}, rollout]
    observer._read_events({"data": [{"data": data} for data in told]})
    assert observer.ready == {11: "learner", 12: "rank-1", 13: "rollout-0"}


def test_what_outlives_its_parent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = ProcessTracker()
    monkeypatch.setenv("CHAOS_CAMPAIGN", processes.mark)
    sleeper = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0).pid, flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", sleeper + "; input()"], stdin=-1, stdout=-1, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert [process.pid for process in processes.left()] == [orphan]
    assert kind_of(processes.left()[0], {}) is None
    monkeypatch.setattr("headrace_chaos.final_checks.ENDING_SECONDS", 0.01)
    assert str(orphan) in of_machine(processes, [])[0]
    parent.communicate()  # closes its standard input, at which the orphan ends
