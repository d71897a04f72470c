"""The leases that a rollout worker holds: taken while the engine has capacity, renewed, given back.

    admit   ledger.admit ──► one task per lease, which commits its group or fails it
    renew   every third of a lease's lifetime; a lost lease cancels its task
    drain   a drained worker's deadline ──► the remaining leases are given back

Invariants: every lease taken is committed, failed, lost or given back, even if the worker is stopped before the answer
with the lease arrives; a lease whose task is running is never given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from headrace_core.clock import Clock
from headrace_core.concurrency import acquire_or_undo, cancel
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.records import Lease, Refusal
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import WorkerState

from .engines.engine import Engine

REFUSED_SECONDS, MAX_REFUSED_SECONDS = 0.05, 1.0
"""First and longest wait after the engine refused a row; it doubles with each consecutive refusal."""
SIGNAL_SECONDS = 1.0
"""Longest sleep of a loop that waits for a signal: it bounds the delay if a signal is missed."""


class LeasePool:
    """The leases of one worker. `make` generates the group of a lease, and commits or fails it."""

    def __init__(
        self,
        config: WorkerConfig,
        job: JobRecord,
        live: SettingsLog,
        engine: Engine,
        make: Callable[[Lease], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.wake = asyncio.Event()
        """Set whenever another `admit` may succeed."""
        self.broken: asyncio.Queue[BaseException] = asyncio.Queue()
        """Errors of groups that must end the worker: the engine or Redis failed."""
        self.refusal: Refusal | None = None
        """Why the last admission gave no lease."""
        self._config, self._max_running = config, config.settings.max_running
        self._ledger, self._drains, self._live = job.ledger, job.drains, live
        self._engine, self._make, self._clock = engine, make, clock
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        """Leases with a running task. By token, not by group: a lost group may return under a newer lease before the
        task of the older one has ended."""
        self._unsettled: dict[str, Lease] = {}
        """Leases that are neither committed nor failed nor lost, by token: without a task, they must be given back."""
        self._refused_in_a_row, self._admit_from = 0, 0.0
        """Rows refused since the last success, and the (monotonic) time before which nothing is admitted."""

    @property
    def holds_any(self) -> bool:
        """Whether a task of a lease is running."""
        return bool(self._held)

    @property
    def state(self) -> WorkerState:
        """The worker's state for its heartbeat: running, draining or drained."""
        if self.refusal is not Refusal.DRAINED:
            return "running"
        return "draining" if self._held else "drained"

    async def admit(self) -> None:
        """Take one lease, if the engine has capacity for its group, and begin its task. `refusal` says why it got none.

        It takes one lease per call, so that the pacing window spreads over all workers.
        """
        free = max(self._max_running - self._engine.running, 0) // self._live.newest.group_size
        if (free == 0 and self._engine.running) or self._clock.monotonic() < self._admit_from:
            return
        admission = await acquire_or_undo(
            self._ledger.admit(self._config.worker, self._engine.version, 1, self._config.lease_seconds),
            lambda granted: self._ledger.release(granted.leases),
        )
        for lease in admission.leases:
            self._hold(lease)
            self.wake.set()
        self.refusal = admission.refusal

    async def renew_loop(self) -> str:
        """Renew all leases, and cancel the tasks of lost ones. Never returns."""
        while True:
            await asyncio.sleep(self._config.lease_seconds / 3)
            held = list(self._held.values())  # a copy: a group may have a newer lease when the answer arrives
            lost = await self._ledger.renew([lease for lease, _ in held], self._config.lease_seconds)
            await cancel([task for lease, task in held if lease.group_id in lost])
            self._forget(lease for lease, _ in held if lease.group_id in lost)

    async def drain_loop(self) -> str:
        """Give leases back when the deadline of a drain has passed. Never returns."""
        while True:
            await asyncio.sleep(SIGNAL_SECONDS)
            drain = await self._drains.of(self._config.worker)
            if drain is not None and self._held and self._clock.time() >= drain.until:
                await self.give_back()

    async def give_back(self) -> None:
        """Cancel all tasks and give their leases back; other workers can take them at once."""
        await cancel([task for _, task in self._held.values()])
        leases = [lease for token, lease in self._unsettled.items() if token not in self._held]
        await self._ledger.release(leases)
        self._forget(leases)  # only now: if this is cancelled before, the next call still finds them

    def served(self) -> None:
        """Note that the engine served a row."""
        self._refused_in_a_row = 0

    def refused(self) -> None:
        """Note that the engine refused a row. A refusal takes no time, so take no lease for a while."""
        delay = min(REFUSED_SECONDS * 2.0**self._refused_in_a_row, MAX_REFUSED_SECONDS)
        self._refused_in_a_row = min(self._refused_in_a_row + 1, 10)
        self._admit_from = self._clock.monotonic() + delay
        asyncio.get_running_loop().call_later(delay, self.wake.set)

    def _hold(self, lease: Lease) -> None:
        """Begin a task that makes the lease's group."""
        task = asyncio.create_task(self._settle(lease), name=f"group-{lease.group_id}")
        self._unsettled[lease.token], self._held[lease.token] = lease, (lease, task)
        task.add_done_callback(lambda _: self._let_go(lease))

    async def _settle(self, lease: Lease) -> None:
        try:
            await self._make(lease)
            self._forget([lease])
        except Exception as error:
            self.broken.put_nowait(error)

    def _let_go(self, lease: Lease) -> None:
        """Called when the lease's task has ended; it may be cancelled before its first step.

        The `pop` has a default because a faulty ledger could give two tasks the same token.
        """
        self._held.pop(lease.token, None)
        self.wake.set()

    def _forget(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._unsettled.pop(lease.token, None)
