"""Room to write in: a disk that is full is waited for before the job pauses, and Redis is on its own disk before a
checkpoint is.

    to save ─► Redis has written the settled steps through ─► written ─┐
               ▲                     no room: told once, every 2 s ────┤ for `wait` seconds, then `DiskFull`: a pause
               └───────────────────────────────────────────────────────┘

What was written in part is gone by then; the learner holds its state meanwhile, and the ledger its settled steps.
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

AGAIN_SECONDS = 2.0
_T = TypeVar("_T")


class DurableWriter:
    """Writes of one learner that are repeated until there is room for them."""

    def __init__(
        self,
        coordinator: Coordinator,
        job: JobRecord,
        config: WorkerConfig,
        clock: Clock = SYSTEM_CLOCK,
        again: float = AGAIN_SECONDS,
    ) -> None:
        self._coordinator, self._redis, self._jobs, self._config = coordinator, job.redis, job.store, config
        self._clock, self._again = clock, again
        self._lasting = True
        """Whether Redis could say so far that its disk has what it was told."""

    async def save(self, order: Command, write: Callable[[], _T]) -> _T:
        """As `write`, once the settled steps are on Redis' disk, where it has one."""
        if self._lasting and not await wait_until_durable(self._redis):
            self._lasting = False
            message = "Redis does not say what is on its disk: after a loss of power, the last steps are trained again"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")
        return await self.write(order, write)

    async def write(self, order: Command, write: Callable[[], _T]) -> _T:
        """What `write` returns, done by all ranks, when there is room for it.

        Raises `DiskFull` after as long as Redis is waited for; at once where there are several ranks, because those
        that have written wait for those that could not.
        """
        until, told = self._clock.monotonic() + self._config.redis_wait, False
        while True:
            try:
                return await self._coordinator.run_on_all(order, write)
            except DiskFull as error:
                if self._clock.monotonic() >= until or self._coordinator.ranks.size > 1:
                    raise
                if not told:
                    told = True
                    await self._report(error)
            await asyncio.sleep(min(self._again, max(0.0, until - self._clock.monotonic())))

    async def _report(self, error: DiskFull) -> None:
        wait = self._config.redis_wait
        data = DiskWait(self._config.worker, error.code, wait)
        message = f"{error.message}; {self._config.worker} waits {wait:g} s for room"
        await self._jobs.emit_event(self._config.job_id, message, level="warn", data=data)
