"""Which worker of a job waits for which, derived from their heartbeats.

A heartbeat holds, in seconds since the worker's start, how long the worker was busy and how long it waited for what. A
worker's present activity is the sum that grew most between its last two heartbeats.

    learner     waits for groups            ──► the rollout workers that are not waiting for the learner themselves
    rollout-n   waits for window            ──► the learner: enough groups are in flight
                waits for rewards           ──► its reward
                drained                     ──► the operator who drained it
    any worker  busy, publish, …            ──► nobody: it does its own work

Invariant: `roots` are the workers whose own work the others wait for; restarting any other worker cannot help.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from headrace_core.protocols.worker import LEARNER_NAME
from headrace_core.types.events import Wait
from headrace_core.types.metrics import WorkerMetrics

_WORK = {
    "learner": {"busy": "its training step", "publish": "the publication of its weights", "checkpoint": "a checkpoint"},
    "rollout": {
        "busy": "its engine",
        "rewards": "its reward",
        "drained": "whoever drained it",
        "update": "new weights",
    },
}


class _Activity(msgspec.Struct):
    """What a worker does, according to its last two heartbeats."""

    sums: dict[str, float]
    started: float
    what: str
    since: float
    """Start of the activity, by the worker's clock."""
    role: str
    running: int
    at: float


class WaitGraph:
    """Which workers of one job wait for which."""

    def __init__(self) -> None:
        self._activities: dict[str, _Activity] = {}

    def add_heartbeats(self, beats: Iterable[WorkerMetrics]) -> None:
        """Take in the newest heartbeat of each worker. One that was seen before changes nothing."""
        for beat in beats:
            before = self._activities.get(beat.worker)
            if before is None or beat.time != before.at:
                self._activities[beat.worker] = _activity(beat, before)

    def now(self, silent: Mapping[str, float], starting: Iterable[str] = ()) -> list[Wait]:
        """What every worker waits for, and for how long.

        `silent`: the workers whose process does not answer, with the seconds since it last did. `starting`: the workers
        that are not ready yet.
        """
        waits = [Wait(name, "an answer of its process", seconds) for name, seconds in silent.items()]
        waits += [Wait(name, "its start", 0.0) for name in starting]
        named = {wait.who for wait in waits}
        for name, activity in sorted(self._activities.items()):
            if name not in named:
                waits.append(Wait(name, self._waits_for(name), round(activity.at - activity.since, 1)))
        return waits

    def roots(self) -> list[str]:
        """The workers whose own work the others wait for. The learner, where every worker waits for another."""
        working = [n for n, d in self._activities.items() if d.what not in ("groups", "window", "drained")]
        return sorted(working) or [LEARNER_NAME]

    def _waits_for(self, name: str) -> str:
        activity = self._activities[name]
        if activity.what == "groups":
            makers = [n for n, d in sorted(self._activities.items()) if d.role == "rollout" and d.what != "window"]
            return "groups of " + (", ".join(makers) or "rollout workers")
        if activity.what == "window":
            return LEARNER_NAME
        work = _WORK[activity.role].get(activity.what, activity.what)
        return f"{work}, {activity.running} requests in flight" if activity.running else work


def _activity(beat: WorkerMetrics, before: _Activity | None) -> _Activity:
    sums = {"busy": beat.busy, **beat.waiting}
    started = beat.time - beat.uptime
    grown = sums
    if before is not None and abs(started - before.started) < 1.0:  # else the worker was restarted: its sums began at 0
        grown = {what: seconds - before.sums.get(what, 0.0) for what, seconds in sums.items()}
    what = max(grown, key=grown.__getitem__)
    same = before is not None and before.what == what and grown is not sums
    since = before.since if same and before is not None else beat.time - min(grown[what], beat.uptime)
    return _Activity(sums, started, what, since, beat.role, beat.running, beat.time)
