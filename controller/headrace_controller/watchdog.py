"""No silent hang: where nothing moves, it says who waits for whom, and acts.

    a worker's process does not answer   for half of `watchdog_seconds` ─► its leases are issued again
                                         for all of it ─────────────────► it is ended and started again
    no group arrives, no step is settled for `watchdog_seconds` ────────► an event: who waits for whom
                                         for half of `stall_timeout` ───► whom all wait for is started again
                                         as long once more ─────────────► `Stalled`: the job pauses

A weight update that hangs is given up by the rollout worker itself. Each act is an event and a count
(`RecoveryCounters`).

Invariant: progress is what a step can be made of, or one that was made: a group that arrives, a version; and a
completion of an evaluation, which holds its worker back (one that begins anew counts from where the last one came to).
A restart, a lease, or a group that failed is none, of which there may be any number. Restarts are given back to workers
only where there was progress since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import UNSET

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import Job, JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.counts import QUEUED_ONCE, LedgerCounts
from headrace_core.ledger.ledger import Ledger
from headrace_core.types.events import RecoveryAction, Standstill, Wait
from headrace_core.types.metrics import furthest_evaluation

from .pause_reasons import Stalled
from .wait_graph import WaitGraph
from .workers.liveness import StallTimer
from .workers.supervisor import WorkerSupervisor


class Watchdog:
    """Of one job; `look` is called about once a second."""

    def __init__(
        self,
        settings: Settings,
        job: Job,
        jobs: JobStore,
        ledger: Ledger,
        recoveries: RecoveryCounters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._soon, self._late = settings.watchdog_seconds, settings.stall_timeout / 2
        self._job, self._jobs, self._ledger, self._recoveries = job, jobs, ledger, recoveries
        self._waits = WaitGraph()
        self._still = StallTimer(clock)
        self._progress: tuple[int, ...] | None = None
        self._evaluated = (-1, 0)
        """The furthest that an evaluation came: its policy version, its completions."""
        self._reported = self._acted = False
        """Since the last progress."""
        self._reissued: set[str] = set()
        """Workers whose silence has had its first act."""

    async def look(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, held: bool) -> None:
        """At everything; `held`: the job is meant to stand still. Raises `Stalled`."""
        beats = await self._jobs.workers(self._job.id)
        self._waits.heard(beats)
        self._evaluated = max(self._evaluated, furthest_evaluation(beats))
        silent = {worker.name: worker.silent() for worker in workers}
        for worker in workers:
            await self._look_at(worker, silent[worker.name], workers)
        await self._look_at_job(workers, account, held)

    # ── one worker ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_at(self, worker: WorkerSupervisor, silent: float, workers: Sequence[WorkerSupervisor]) -> None:
        if silent < self._soon / 2:
            self._reissued.discard(worker.name)
        elif silent >= self._soon:
            reason = f"its process did not answer for {silent:.0f} s"
            worker.end(reason)
            await self._report(f"{worker.name} is ended: {reason}", self._all(workers), "restart")
        elif worker.name not in self._reissued:
            self._reissued.add(worker.name)
            ended = await self._ledger.expire_leases_of(worker.name)
            message = f"{worker.name} does not answer for {silent:.0f} s: {ended} of its leases are issued again"
            await self._report(message, self._all(workers), "reissue")

    # ── the job ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_at_job(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, held: bool) -> None:
        before, self._progress = self._progress, (*progress(account), *self._evaluated)
        if self._progress != before:
            self._reported = self._acted = False
            for worker in workers if before is not None else ():
                worker.progressed()
        still = self._still.look(self._progress)
        working = bool(workers) and all(worker.working for worker in workers)
        if held or not working or account.version >= self._job.total_steps:
            self._still.begin()
        elif still >= self._late:
            await self._act(workers, account, still)
        elif still >= self._soon and not self._reported:
            self._reported = True
            waits = self._all(workers)
            await self._report(f"no progress for {still:.0f} s at version {account.version}: {spoken(waits)}", waits)

    async def _act(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, still: float) -> None:
        waits = self._all(workers)
        if self._acted:
            raise Stalled(
                f"no progress for {still:.0f} s, also after workers were started again: {spoken(waits)}; "
                f"groups by state: {account.states} at policy version {account.version}"
            )
        self._acted = True
        roots = self._waits.roots()
        for worker in workers:
            if worker.name in roots:
                reason = f"no progress for {still:.0f} s, which others wait for"
                worker.end(reason)
                await self._report(f"{worker.name} is ended: {reason}", waits, "restart")
        self._still.begin()

    def _all(self, workers: Sequence[WorkerSupervisor]) -> list[Wait]:
        silent = {w.name: round(s, 1) for w in workers if (s := w.silent()) >= self._soon / 2}
        return self._waits.now(silent, [worker.name for worker in workers if not worker.ready])

    async def _report(self, message: str, waits: Sequence[Wait], act: RecoveryAction | None = None) -> None:
        await self._jobs.emit_event(self._job.id, message, level="warn", data=Standstill(waits, act or UNSET))
        if act is not None:
            await self._recoveries.count_action(act)


def progress(account: LedgerCounts) -> tuple[int, int]:
    """What only grows as a job goes on: its version, and the groups that were queued, whatever became of them."""
    return account.version, sum(account.states[state] for state in QUEUED_ONCE)


def spoken(waits: Sequence[Wait]) -> str:
    """The waits in words."""
    return "; ".join(map(str, waits)) or "no worker was heard of"
