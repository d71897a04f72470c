"""The judges of a campaign find what they are there for: lost groups, groups trained twice, versions that run back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from headrace_chaos.final_checks import of_job, of_machine
from headrace_chaos.outside_observer import Watcher
from headrace_chaos.processes import Family, kind_of

JOB = "ftjob-1"
HISTORIES = [["leased", "queued", "claimed", "trained"], ["leased", "leased", "queued", "claimed", "trained"]]


class Answers(Watcher):
    """A watcher whose service is a dictionary of what is told."""

    def __init__(self, histories: list[list[str]], **changed: Any) -> None:
        super().__init__(lambda: "http://localhost:1")
        self.follow(JOB, 2)
        self._answers = {
            "": {"id": JOB, "status": "succeeded"},
            "/ledger": ledger(admitted=len(histories)),
            "/metrics?kind=step&limit=10000": {"data": [{"data": {"step": 1}}]},
        } | {f"/ledger/{n}": {"history": [{"state": s} for s in states]} for n, states in enumerate(histories)}
        self._answers |= changed

    def answer(self, route: str, limit: float = 0.0) -> Any:
        return self._answers[route]


def ledger(**changed: Any) -> dict[str, Any]:
    whole = {"version": 1, "largest_age": 0, "balanced": True, "admitted": 2, "states": {"trained": 2, "leased": 0}}
    return whole | changed


@pytest.fixture
def watcher() -> Answers:
    return Answers(HISTORIES)


def test_a_job_that_kept_its_promises_is_left_in_peace(watcher: Answers) -> None:
    assert of_job(watcher, steps=1, batch_size=2) == []


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
    assert any(found in promise for promise in of_job(Answers(histories), steps=1, batch_size=2))


@pytest.mark.parametrize(
    ("route", "answer", "found"),
    [
        ("", {"id": JOB, "status": "failed", "error": {"code": "x"}}, "it ended as failed"),
        ("/ledger", ledger(balanced=False), "the books do not balance"),
        ("/ledger", ledger(states={"trained": 1, "cancelled": 1}), "1 groups were trained, not 2"),
        ("/metrics?kind=step&limit=10000", {"data": [{"data": {"step": 1}}] * 2}, "steps were told as [1, 1]"),
    ],
)
def test_jobs_are_judged_by_what_is_told(route: str, answer: dict[str, Any], found: str) -> None:
    assert any(found in promise for promise in of_job(Answers(HISTORIES, **{route: answer}), steps=1, batch_size=2))


def test_the_watcher_notes_what_it_sees(watcher: Answers) -> None:
    watcher._judge_ledger(ledger(version=5))
    watcher._judge_ledger(ledger(version=4, largest_age=3, balanced=False))
    watcher._judge_status({"status": "paused", "paused_by": {"code": "stalled"}})
    watcher._judge_status({"status": "succeeded"})
    watcher._judge_status({"status": "running"})
    found = "\n".join(watcher.broken)
    for promise in ("version 4 was seen after 5", "of age 3", "do not balance", "paused by itself", "was succeeded"):
        assert promise in found


def test_workers_are_known_by_what_their_events_say(watcher: Answers) -> None:
    learner = {"worker": "learner", "device": "cpu", "seconds": 2.5, "pid": 11, "rank 1": "pid 12"}
    rollout = {"worker": "rollout-0", "engine": "vllm", "pid": 13}
    told = [None, learner, {"worker": "learner", "restart": 1}, rollout]
    watcher._read_events({"data": [{"data": data} for data in told]})
    assert watcher.ready == {11: "learner", 12: "rank-1", 13: "rollout-0"}


def test_what_outlives_its_parent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family()
    monkeypatch.setenv("CHAOS_CAMPAIGN", family.mark)
    sleeper = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0).pid, flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", sleeper + "; input()"], stdin=-1, stdout=-1, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert [process.pid for process in family.left()] == [orphan]
    assert kind_of(family.left()[0], {}) is None
    monkeypatch.setattr("headrace_chaos.final_checks.ENDING_SECONDS", 0.01)
    assert str(orphan) in of_machine(family, [])[0]
    parent.communicate()  # closes its standard input, at which the orphan ends
