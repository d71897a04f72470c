"""Whether the tokens that a job's workers compute show that the job moves, although no group arrives and no step ends.

A group of long completions or a large training step may take longer than any fixed limit. Each worker's heartbeat
counts the tokens that its engine has sampled, or its micro-batches computed, within the group or step in progress.

Invariant: rollout tokens count only up to an allowance between two steps of the job's progress. Otherwise a job whose
groups are sampled and lost again and again would never be found. The allowance is twice what the requests in flight, or
those of one group if these are more, can sample: by then a group must have ended. The learner's tokens need no
allowance: a step is finite, and a learner that dies is restarted a few times only.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .config.hyperparameters import Hyperparameters
from .types.metrics import WorkerMetrics

_SLACK = 2
_SAME_START_SECONDS = 1.0
"""Two heartbeats are of one process if the starts that they imply differ by less."""


class _Seen(msgspec.Struct):
    started: float
    tokens: int


class TokenActivity:
    """The tokens of one job, from the newest heartbeats of its workers."""

    def __init__(self, settings: Hyperparameters) -> None:
        self._max_tokens, self._group_size = settings.max_tokens, settings.group_size
        self._seen: dict[str, _Seen] = {}
        self._sampled = self._trained = 0
        self._most_running = 0
        self._counted_before = 0
        """Rollout tokens that counted up to the last progress."""

    def observe(self, beats: Iterable[WorkerMetrics]) -> int:
        """Take in the newest heartbeat of each worker. Returns a count of tokens: it grows while the job moves."""
        running = 0
        for beat in beats:
            new = self._new_tokens(beat)
            if beat.role == "learner":
                self._trained += new
            else:
                self._sampled += new
                running += beat.running
        self._most_running = max(self._most_running, running)
        return self._trained + self._counted_before + min(self._sampled, self._allowance())

    def progressed(self) -> None:
        """A group has arrived or a step was settled: from here on, a whole allowance may be sampled again."""
        self._counted_before += min(self._sampled, self._allowance())
        self._sampled = self._most_running = 0

    def _allowance(self) -> int:
        return _SLACK * self._max_tokens * max(self._most_running, self._group_size)

    def _new_tokens(self, beat: WorkerMetrics) -> int:
        started, before = beat.time - beat.uptime, self._seen.get(beat.worker)
        self._seen[beat.worker] = _Seen(started, beat.computed_tokens)
        if before is None:
            return 0
        same = abs(started - before.started) < _SAME_START_SECONDS
        return max(0, beat.computed_tokens - (before.tokens if same else 0))
