"""Divides Redis' memory evenly among the running jobs: how many bytes of encoded groups each may hold.

    every UPDATE_SECONDS, by each job's controller:

    limit ─ memory used by all but groups ─► half of the rest ÷ running jobs ─► ledger: admits no group beyond it
                                            (the other half: histories, recorded groups, counters, buffers)

The limit is the setting redis_memory or, with an external Redis, its maxmemory; with neither there is no limit. A job
that reaches its share slows down to one batch at a time and drops nothing; an event says when new groups are held back,
and another when they no longer are.
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

UPDATE_SECONDS = 2.0
GROUPS_SHARE = 0.5
"""Fraction of the memory not used by other data that encoded groups may take."""


class MemoryShare:
    """Keeps one job's share of Redis' memory up to date in the job's ledger."""

    def __init__(self, redis: Redis, jobs: JobStore, settings: Settings, job_id: str) -> None:
        self._redis, self._jobs, self._job_id = redis, jobs, job_id
        self._limit = settings.redis_memory
        self._ledger = Ledger(redis, job_id)
        self._last_share: int | None = None
        self._held_back = 0
        self._reported = False

    async def run_forever(self) -> None:
        """Call `update` every `UPDATE_SECONDS`; never returns."""
        while True:
            await self.update()
            await asyncio.sleep(UPDATE_SECONDS)

    async def update(self) -> None:
        """Write the job's current share to its ledger, and emit an event when new groups begin or cease to wait."""
        share = await self._share()
        if share != self._last_share:
            await self._ledger.allot(share)
            self._last_share = share
        if share:
            await self._report(await self._ledger.queues())

    async def _share(self) -> int:
        """Bytes; 0 without a limit, else at least 1, because the ledger reads 0 as no limit."""
        memory = await run(self._redis.info("memory"))
        limit = self._limit or int(memory["maxmemory"])
        if not limit:
            return 0
        under_way = {job.id for job in await self._jobs.statuses() if job.status == "running"} | {self._job_id}
        groups = sum([await self._bytes_of(job_id) for job_id in under_way])
        free = limit - (int(memory["used_memory"]) - groups)
        return max(1, int(free * GROUPS_SHARE) // max(1, len(under_way)))

    async def _bytes_of(self, job_id: str) -> int:
        """Bytes of a job's encoded groups. A damaged ledger of another job counts as 0: it must not end this job."""
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
