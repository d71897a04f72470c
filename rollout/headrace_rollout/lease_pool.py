"""The leases that a rollout worker holds: taken while the engine has room, renewed, given back.

    admit   ledger.admit ──► one task a lease, which commits its group or fails it
    renew   every third of a lease's life; a lost lease cancels its task
    drain   a drained worker's time is up ──► what it still holds is given back

Invariants: every lease taken is committed, failed, lost or given back, also where the worker is stopped before it hears
that it was given one; a lease whose task is under way is never given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from headrace_core.clock import Clock
from headrace_core.concurrency import acquire_or_undo, cancel
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.ledger import Lease, Refusal
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import WorkerState

from .engines.engine import Engine

REFUSED_SECONDS, REFUSED_LONGEST = 0.05, 1.0
"""Wait after a row that the engine refused; it doubles with each in a row."""
SIGNAL_SECONDS = 1.0
"""Longest sleep of a loop that waits for a signal: a bound on the delay should a signal be missed, not a poll rate."""


class LeasePool:
    """Of one worker. `make` commits or fails the group of one lease."""

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
        """Set whenever there may be room, or news, for `admit`."""
        self.broken: asyncio.Queue[BaseException] = asyncio.Queue()
        """Errors that no group can mend: the engine or Redis is gone."""
        self.refusal: Refusal | None = None
        """Why the last admission gave nothing."""
        self._config, self._max_running = config, config.settings.max_running
        self._ledger, self._drains, self._live = job.ledger, job.drains, live
        self._engine, self._make, self._clock = engine, make, clock
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        """By token: a group that was lost may come back under a newer lease before the task of the older has ended."""
        self._unsettled: dict[str, Lease] = {}
        """By token, those neither committed nor failed nor lost: whose task has ended otherwise is to be given back."""
        self._refused_in_a_row, self._admit_from = 0, 0.0
        """Rows that the engine refused since the last group; the moment before which nothing more is admitted."""

    @property
    def holds_any(self) -> bool:
        """Whether a task of a lease is under way."""
        return bool(self._held)

    @property
    def state(self) -> WorkerState:
        """What the worker does with leases, for its heartbeat."""
        if self.refusal is not Refusal.DRAINED:
            return "running"
        return "draining" if self._held else "drained"

    async def admit(self) -> None:
        """Take one lease, where the engine has room for its group, and begin with it; `refusal` says why there is none.

        One group a turn, so that the window spreads over all workers.
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
        """Never returns."""
        while True:
            await asyncio.sleep(self._config.lease_seconds / 3)
            held = list(self._held.values())  # one of these groups may be held under a newer lease by the answer
            lost = await self._ledger.renew([lease for lease, _ in held], self._config.lease_seconds)
            await cancel([task for lease, task in held if lease.group_id in lost])
            self._forget(lease for lease, _ in held if lease.group_id in lost)

    async def drain_loop(self) -> str:
        """Never returns."""
        while True:
            await asyncio.sleep(SIGNAL_SECONDS)
            drain = await self._drains.of(self._config.worker)
            if drain is not None and self._held and self._clock.time() >= drain.until:
                await self.give_back()

    async def give_back(self) -> None:
        """End what is under way; another worker takes the leases at once."""
        await cancel([task for _, task in self._held.values()])
        leases = [lease for token, lease in self._unsettled.items() if token not in self._held]
        await self._ledger.release(leases)
        self._forget(leases)  # only now: where a drain is cancelled in between, the next call finds them

    def served(self) -> None:
        """The engine served a row."""
        self._refused_in_a_row = 0

    def refused(self) -> None:
        """The engine refused a row. That takes no time at all, so take no lease for a while."""
        delay = min(REFUSED_SECONDS * 2.0**self._refused_in_a_row, REFUSED_LONGEST)
        self._refused_in_a_row = min(self._refused_in_a_row + 1, 10)
        self._admit_from = self._clock.monotonic() + delay
        asyncio.get_running_loop().call_later(delay, self.wake.set)

    def _hold(self, lease: Lease) -> None:
        """Make its group, beside all else."""
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
        """Its task has ended, and may never have begun. A ledger at fault may have given two tasks one token."""
        self._held.pop(lease.token, None)
        self.wake.set()

    def _forget(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._unsettled.pop(lease.token, None)
