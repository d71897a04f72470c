"""Redis' memory, shared out among the jobs that run: so many bytes of encoded groups may each hold.

    every LOOK_SECONDS, by each job's controller:

    bound ─ what all but groups takes ─► half of the rest ÷ jobs under way ─► ledger: nothing is admitted beyond it
                                        (the other half: histories, kept groups, books, buffers)

The bound is the setting redis_memory or, of a Redis of one's own, its maxmemory; without either there is none. A job is
told when new groups are held back, and when they no longer are: it slows to one batch at a time, and drops nothing.
"""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.counts import Queues
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import log_damaged_once
from headrace_core.types.events import MemoryWait

LOOK_SECONDS = 2.0
GROUPS_PART = 0.5
"""Of what is free for them, encoded groups may take so much."""


class MemoryShare:
    """The part of Redis' memory that one job may use."""

    def __init__(self, redis: Redis, jobs: JobStore, settings: Settings, job_id: str) -> None:
        self._redis, self._jobs, self._job_id = redis, jobs, job_id
        self._bound = settings.redis_memory
        self._ledger = Ledger(redis, job_id)
        self._allotted: int | None = None
        self._held_back = 0
        self._reported = False

    async def keep_allotted(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Allot what is the job's now, and tell it of a change."""
        share = await self._share()
        if share != self._allotted:
            await self._ledger.allot(share)
            self._allotted = share
        if share:
            await self._report(await self._ledger.queues())

    async def _share(self) -> int:
        memory = await run(self._redis.info("memory"))
        bound = self._bound or int(memory["maxmemory"])
        if not bound:
            return 0
        under_way = {job.id for job in await self._jobs.statuses() if job.status == "running"} | {self._job_id}
        groups = sum([await self._bytes_of(job_id) for job_id in under_way])
        free = bound - (int(memory["used_memory"]) - groups)
        return max(1, int(free * GROUPS_PART) // max(1, len(under_way)))

    async def _bytes_of(self, job_id: str) -> int:
        """Of a job's groups; 0 of another one whose ledger is damaged, which is no reason to end this one."""
        try:
            return (await Ledger(self._redis, job_id).queues()).bytes
        except Damaged as error:
            if job_id == self._job_id:
                raise
            log_damaged_once(error)
            return 0

    async def _report(self, now: Queues) -> None:
        grown, self._held_back = now.held_back > self._held_back, now.held_back
        data = MemoryWait(bytes=now.bytes, share=now.share, held_back=now.held_back)
        if grown and not self._reported:
            self._reported = True
            message = (
                f"new groups wait: those kept take {now.bytes:,} bytes of the {now.share:,} that are the job's share"
            )
            await self._jobs.emit_event(self._job_id, message, level="warn", data=data)
        elif not grown and self._reported:
            self._reported = False
            await self._jobs.emit_event(self._job_id, "new groups wait no longer for memory in Redis", data=data)
