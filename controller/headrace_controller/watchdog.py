"""The watchdog: detects a job that makes no progress, reports which worker waits for which, and restarts workers.

    a worker's process does not answer   for watchdog_seconds / 2 ─► its leases are issued again
                                         for watchdog_seconds ─────► it is killed and restarted
    no group arrives, no step is settled,
    and no token is computed             for watchdog_seconds ─────► an event: which worker waits for what
                                         for stall_timeout / 2 ────► the workers that the others wait for are restarted
                                         for as long once more ────► `Stalled`: the job pauses

The rollout worker itself gives up a weight update that hangs. Each action is an event, and is counted
(`RecoveryCounters`).

Invariant: progress is a group that arrives, a new policy version, or a completion of an evaluation (an evaluation makes
its worker wait, so it has to count; one that starts over makes progress only past the point that was reached before). A
restart, a lease or a failed group is no progress, because there may be any number of them. A worker gets its restarts
back only if there was progress since its last one. Tokens computed within a group or a step are no progress either, but
while they are, time does not count against the job (`TokenActivity`, which bounds how many).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UNSET

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.counts import QUEUED_ONCE, LedgerCounts
from headrace_core.ledger.ledger import Ledger
from headrace_core.token_activity import TokenActivity
from headrace_core.types.events import RecoveryAction, Standstill, Wait
from headrace_core.types.job import Job
from headrace_core.types.metrics import furthest_evaluation

from .pause_reasons import Stalled
from .wait_graph import WaitGraph
from .workers.liveness import StallTimer
from .workers.supervisor import WorkerSupervisor


class Watchdog:
    """The watchdog of one job; the controller calls `check` about once a second. `clock`: monotonic seconds."""

    def __init__(
        self,
        settings: Settings,
        job: Job,
        jobs: JobStore,
        ledger: Ledger,
        recoveries: RecoveryCounters,
        clock: Callable[[], float],
    ) -> None:
        self._report_after, self._act_after = settings.watchdog_seconds, settings.stall_timeout / 2
        self._job, self._jobs, self._ledger, self._recoveries = job, jobs, ledger, recoveries
        self._waits = WaitGraph()
        self._activity = TokenActivity(Hyperparameters.model_validate(job.hyperparameters))
        self._timer = StallTimer(clock)
        self._progress: tuple[int, ...] | None = None
        self._evaluated = (-1, 0)
        """The furthest point that an evaluation has reached: (policy version, completions)."""
        self._computed_tokens = 0
        self._reported = self._acted = False
        """Whether the standstill was reported, and workers restarted, since the last progress."""
        self._reissued: set[str] = set()
        """Workers that do not answer and whose leases were issued again."""

    async def check(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, held: bool) -> None:
        """Check every worker, and the job's progress. `held`: no progress is expected, since every rollout worker is
        drained. Raises `Stalled`."""
        beats = await self._jobs.workers(self._job.id)
        self._waits.add_heartbeats(beats)
        self._evaluated = max(self._evaluated, furthest_evaluation(beats))
        self._computed_tokens = self._activity.observe(beats)
        silent = {worker.name: worker.silent() for worker in workers}
        for worker in workers:
            await self._check_worker(worker, silent[worker.name], workers)
        await self._check_job(workers, account, held)

    # ── one worker ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check_worker(self, worker: WorkerSupervisor, silent: float, workers: Sequence[WorkerSupervisor]) -> None:
        if silent < self._report_after / 2:
            self._reissued.discard(worker.name)
        elif silent >= self._report_after:
            reason = f"its process did not answer for {silent:.0f} s"
            worker.end(reason)
            await self._report(f"{worker.name} is ended: {reason}", self._current_waits(workers), "restart")
        elif worker.name not in self._reissued:
            self._reissued.add(worker.name)
            ended = await self._ledger.expire_leases_of(worker.name)
            message = f"{worker.name} does not answer for {silent:.0f} s: {ended} of its leases are issued again"
            await self._report(message, self._current_waits(workers), "reissue")

    # ── the job ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check_job(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, held: bool) -> None:
        before, self._progress = self._progress, (*progress(account), *self._evaluated)
        if self._progress != before:
            self._reported = self._acted = False
            self._activity.progressed()
            for worker in workers if before is not None else ():  # the first check only learns where the job is
                worker.progressed()
        still = self._timer.observe((self._progress, self._computed_tokens))
        working = bool(workers) and all(worker.working for worker in workers)
        if held or not working or account.version >= self._job.total_steps:
            self._timer.begin()
        elif still >= self._act_after:
            await self._act(workers, account, still)
        elif still >= self._report_after and not self._reported:
            self._reported = True
            waits = self._current_waits(workers)
            await self._report(
                f"no progress for {still:.0f} s at version {account.version}: {describe_waits(waits)}", waits
            )

    async def _act(self, workers: Sequence[WorkerSupervisor], account: LedgerCounts, still: float) -> None:
        waits = self._current_waits(workers)
        if self._acted:
            raise Stalled(
                f"no progress for {still:.0f} s, also after workers were started again: {describe_waits(waits)}; "
                f"groups by state: {account.states} at policy version {account.version}"
            )
        self._acted = True
        roots = self._waits.roots()
        for worker in workers:
            if worker.name in roots:
                reason = f"no progress for {still:.0f} s, which others wait for"
                worker.end(reason)
                await self._report(f"{worker.name} is ended: {reason}", waits, "restart")
        self._timer.begin()

    def _current_waits(self, workers: Sequence[WorkerSupervisor]) -> list[Wait]:
        silent = {w.name: round(s, 1) for w in workers if (s := w.silent()) >= self._report_after / 2}
        return self._waits.now(silent, [worker.name for worker in workers if not worker.ready])

    async def _report(self, message: str, waits: Sequence[Wait], act: RecoveryAction | None = None) -> None:
        await self._jobs.emit_event(self._job.id, message, level="warn", data=Standstill(waits, act or UNSET))
        if act is not None:
            await self._recoveries.count_action(act)


def progress(account: LedgerCounts) -> tuple[int, int]:
    """A measure that grows with a job's progress: (policy version, number of groups that were ever queued)."""
    return account.version, sum(account.states[state] for state in QUEUED_ONCE)


def describe_waits(waits: Sequence[Wait]) -> str:
    """The waits as one line of text."""
    return "; ".join(map(str, waits)) or "no worker was heard of"
