"""Who waits for whom in a job, from its workers' heartbeats.

Each heartbeat says, in sums since the worker's start, how long it worked and what it waited for. What it does now is
the sum that grew most between its last two.

    learner    groups             ──► the rollout workers that are not waiting for it themselves
    rollout-n  window             ──► the learner: groups enough are under way
               rewards            ──► its reward
               drained            ──► whoever drained it
    anyone     busy, publish, …   ──► nobody: its own work

Invariant: `roots` are those whose own work the others wait for, so to start them again is the only thing that can help.
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


class _Doing(msgspec.Struct):
    """What a worker does, by its last two heartbeats."""

    sums: dict[str, float]
    started: float
    what: str
    since: float
    """Of the worker's clock, as heartbeats tell it."""
    role: str
    running: int
    at: float


class WaitGraph:
    """Which workers of one job wait for which."""

    def __init__(self) -> None:
        self._doing: dict[str, _Doing] = {}

    def heard(self, beats: Iterable[WorkerMetrics]) -> None:
        """The newest heartbeat of each worker."""
        for beat in beats:
            before = self._doing.get(beat.worker)
            if before is None or beat.time != before.at:
                self._doing[beat.worker] = _doing(beat, before)

    def now(self, silent: Mapping[str, float], starting: Iterable[str] = ()) -> list[Wait]:
        """Of every worker. `silent`: seconds for which a worker's process has not answered, of those that do not."""
        found = [Wait(name, "an answer of its process", seconds) for name, seconds in silent.items()]
        found += [Wait(name, "its start", 0.0) for name in starting]
        named = {wait.who for wait in found}
        others = [name for name in sorted(self._doing) if name not in named]
        return found + [Wait(n, self._whom(n), round(self._doing[n].at - self._doing[n].since, 1)) for n in others]

    def roots(self) -> list[str]:
        """The workers whose own work is waited for. Where each waits for another, the learner."""
        working = [n for n, d in self._doing.items() if d.what not in ("groups", "window", "drained")]
        return sorted(working) or [LEARNER_NAME]

    def _whom(self, name: str) -> str:
        doing = self._doing[name]
        if doing.what == "groups":
            makers = [n for n, d in sorted(self._doing.items()) if d.role == "rollout" and d.what != "window"]
            return "groups of " + (", ".join(makers) or "rollout workers")
        if doing.what == "window":
            return LEARNER_NAME
        work = _WORK[doing.role].get(doing.what, doing.what)
        return f"{work}, {doing.running} requests in flight" if doing.running else work


def _doing(beat: WorkerMetrics, before: _Doing | None) -> _Doing:
    sums = {"busy": beat.busy, **beat.waiting}
    started = beat.time - beat.uptime
    grown = sums
    if before is not None and abs(started - before.started) < 1.0:  # else of another process
        grown = {what: seconds - before.sums.get(what, 0.0) for what, seconds in sums.items()}
    what = max(grown, key=grown.__getitem__)
    same = before is not None and before.what == what and grown is not sums
    since = before.since if same and before is not None else beat.time - min(grown[what], beat.uptime)
    return _Doing(sums, started, what, since, beat.role, beat.running, beat.time)
