"""Retries checkpoint and weight writes while a disk is full, and makes Redis durable before a checkpoint.

    save ─► wait until Redis has the settled steps on disk ─► write ─┐
                                   ▲                                 │ disk full: an event once, again every 2 s
                                   └─────────────────────────────────┘ for `redis_wait` seconds, then `DiskFull`

A failed write leaves no files. The learner keeps its state meanwhile, and the ledger its settled steps. A `DiskFull`
pauses the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.errors import DiskFull
from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.durability import wait_until_durable
from headrace_core.types.events import DiskWait

from .distributed.rank_commands import Command
from .distributed.rank_coordinator import Coordinator

RETRY_SECONDS = 2.0
_T = TypeVar("_T")


class DurableWriter:
    """One learner's writes to disk. `retry_seconds`: between two attempts while the disk is full."""

    def __init__(
        self,
        coordinator: Coordinator,
        job: JobRecord,
        config: WorkerConfig,
        clock: Clock = SYSTEM_CLOCK,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._coordinator, self._redis, self._jobs, self._config = coordinator, job.redis, job.store, config
        self._clock, self._retry_seconds = clock, retry_seconds
        self._durability_known = True
        """False once Redis could not confirm that its writes are on disk."""

    async def save(self, command: Command, write: Callable[[], _T]) -> _T:
        """As `write`, after Redis has the settled steps on its disk. A warning is emitted once if that is unknown."""
        if self._durability_known and not await wait_until_durable(self._redis):
            self._durability_known = False
            message = "Redis does not say what is on its disk: after a loss of power, the last steps are trained again"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")
        return await self.write(command, write)

    async def write(self, command: Command, write: Callable[[], _T]) -> _T:
        """Run `write` here, and `command` on the other ranks; returns the result of `write`.

        A full disk is retried for `redis_wait` seconds, then raises `DiskFull`. With several ranks it is raised at
        once, because ranks that could write wait for those that could not.
        """
        deadline, reported = self._clock.monotonic() + self._config.redis_wait, False
        while True:
            try:
                return await self._coordinator.run_on_all(command, write)
            except DiskFull as error:
                if self._clock.monotonic() >= deadline or self._coordinator.ranks.size > 1:
                    raise
                if not reported:
                    reported = True
                    await self._report(error)
            await asyncio.sleep(min(self._retry_seconds, max(0.0, deadline - self._clock.monotonic())))

    async def _report(self, error: DiskFull) -> None:
        wait = self._config.redis_wait
        data = DiskWait(self._config.worker, error.code, wait)
        message = f"{error.message}; {self._config.worker} waits {wait:g} s for room"
        await self._jobs.emit_event(self._config.job_id, message, level="warn", data=data)
