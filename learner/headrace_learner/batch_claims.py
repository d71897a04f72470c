"""Claims the groups of a step from the ledger in admission order, filters them, and waits for them within a limit."""

from __future__ import annotations

import asyncio

from headrace_core.clock import Clock
from headrace_core.errors import InvalidState, TimedOut
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.records import Claim, Term, TransitionOutcome
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.token_activity import TokenActivity
from headrace_core.types.metrics import furthest_evaluation
from headrace_core.types.staleness import Selection
from headrace_core.types.trajectory import Group

from .algorithms.token_selection import has_learning_signal

SIGNAL_SECONDS = 1.0
"""Longest wait for one signal of the ledger. It bounds the delay of `stop`; signals arrive without delay."""


class RunEnded(Exception):
    """Ends a learner's run before all steps are trained; its text is the reason that `run` returns."""


class BatchClaims:
    """The claims of one learner, until `stopping` is set."""

    def __init__(
        self, config: WorkerConfig, job: JobRecord, live: SettingsLog, clock: Clock, stopping: asyncio.Event
    ) -> None:
        self._config, self._settings = config, config.settings
        self._job, self._ledger, self._live = job, job.ledger, live
        self._clock, self._stopping = clock, stopping
        self._activity, self._evaluated = TokenActivity(config.settings), (-1, 0)
        self._last_signal = "0"
        """Position in the ledger's signals (see `Ledger.signal`)."""

    async def next_batch(self, term: Term, version: int) -> tuple[Group, ...]:
        """A full batch in admission order, to update policy `version`.

        With `filter_groups`, groups of equal rewards are replaced by others. `filter_limit` bounds how many, because
        the search would never end once the policy solves every prompt, or none. Raises `RunEnded`, and `TimedOut` if no
        batch becomes complete.
        """
        s, batch, filtered = self._settings, list[Group](), 0
        while len(batch) < s.batch_size:
            groups = await self._claim(term, version, held=len(batch))
            no_signal = [g.group_id for g in groups if s.filter_groups and not has_learning_signal(g)]
            if no_signal and filtered < s.filter_limit * s.batch_size:
                end_if_void(self._job.id, term, await self._ledger.filter(term, no_signal, "all rewards equal"))
                filtered += len(no_signal)
                groups = tuple(g for g in groups if g.group_id not in no_signal)
            batch += groups
        return tuple(sorted(batch, key=lambda g: g.group_id))

    async def _claim(self, term: Term, version: int, held: int) -> tuple[Group, ...]:
        """Claim the groups that complete a batch of which `held` are claimed already; waits for them.

        Raises `TimedOut` after `stall_timeout` seconds without progress: neither the selection nor an evaluation moves
        on, no token is sampled (see `TokenActivity`), and not all rollout workers are drained.
        """
        limit = self._config.stall_timeout
        progress, seen, moved = self._clock.monotonic(), Selection(), await self._moved()
        while True:
            if self._stopping.is_set():
                raise RunEnded("stopped")
            await self._live.refresh()
            now = self._live.at(version)
            claim = await self._ledger.claim(
                term, now.limits(self._config.rows), now.late, held, len(self._live.changes)
            )
            end_if_void(self._job.id, term, claim.outcome)
            if claim.groups:
                return claim.groups
            if claim.outcome is TransitionOutcome.GONE:
                continue
            if claim.selection != seen:
                progress, seen = self._clock.monotonic(), claim.selection
                self._activity.progressed()
            elif await self._job.drains.covers_all(self._settings.rollout_workers):
                progress = self._clock.monotonic()  # a fully drained job is meant to wait
            elif self._clock.monotonic() - progress > limit:
                before, moved = moved, await self._moved()
                if moved == before:
                    raise self._stalled(claim)
                # An evaluation advanced, whose worker makes no groups meanwhile; or long completions are sampled.
                progress = self._clock.monotonic()
            self._last_signal = await self._ledger.signal(self._last_signal, min(SIGNAL_SECONDS, limit))

    async def _moved(self) -> tuple[tuple[int, int], int]:
        """What grows while rollout workers move: the furthest point of an evaluation, and the tokens that count."""
        beats = await self._job.store.workers(self._job.id)
        self._evaluated = max(self._evaluated, furthest_evaluation(beats))
        return self._evaluated, self._activity.observe(beats)

    def _stalled(self, claim: Claim) -> TimedOut:
        selection, size = claim.selection, self._settings.batch_size
        if selection.wait_for:
            what = (
                f"for stragglers, groups {', '.join(map(str, selection.wait_for))}, which the next step must not leave"
            )
        else:
            what = f"for groups: {size - selection.missing} of {size} queued"
        return TimedOut(
            f"the learner waited {self._config.stall_timeout:.0f} s without progress "
            f"to update version {claim.version}, {what}"
        )


def end_if_void(job_id: str, term: Term, outcome: TransitionOutcome | None) -> None:
    """Raises `RunEnded` if the ledger is closed, `InvalidState` if another learner has taken over."""
    if outcome is TransitionOutcome.CLOSED:
        raise RunEnded("closed")
    if outcome is TransitionOutcome.FENCED:
        raise InvalidState(
            f"another learner has taken over job {job_id}; term {term.number} is void", code="learner_replaced"
        )
