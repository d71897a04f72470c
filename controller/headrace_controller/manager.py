"""The gateway's side of the controllers: one named, detached Ray actor for each job that runs, ends, or is near its
place in the queue (`queue_window`).

    reconcile, every five      jobs in Redis ─┬─ runs or ends, no actor ─────► start
    seconds, and soon after                   ├─ queued, near its place ─────► start
    a submission, a resume                    ├─ not at rest, no beat yet ───► tell it again to run
    or a cancel                               └─ never began, and is ────────► note that it is at rest: nothing of it
                                                 paused or cancelled           exists that a controller would end
                               actors in Ray ─── no beat in several looks ───► kill

After a restart of the gateway, and after the death of a controller, what should run and does not is started; one whose
gateway died before it had told it to run is told; one that is stopped or hangs is replaced. Every call of Ray has a
limit.

Invariants: what one job's controller raises does not keep another job's from being started; the jobs that wait without
a controller have no part in anything, so that any gateway may start theirs, or note their end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, Self

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import cancel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged, HeadraceError, InvalidRequest, Unavailable
from headrace_core.jobs.job_store import Job, JobStatus, JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.ledger import Ledger
from headrace_core.logs import get_logger
from headrace_core.redis_access.json_records import log_damaged_once
from headrace_core.types.events import Standstill, Wait

from .actors import ControllerActors, RayControllerActors
from .heartbeat import ControllerHeartbeats
from .placement import Plan, plan
from .queue_window import QueueWindow

SUBMITTED_SECONDS = 60.0
"""A job that is stored is queued in less: all that can be refused has been by then."""
MISSED_LOOKS = 3
LOOK_SECONDS = 0.5
MOST_LOOKED_AT = 200
"""Of the queue, in one look: more are not placed within one."""
log = get_logger(__name__)


class ControllerManager(Protocol):
    """What the gateway asks for."""

    async def ensure(self, job: Job) -> None:
        """See to it that the job is run when there is room, or comes to the end that its status says; waits for
        nothing."""
        ...

    async def cancel(self, job_id: str) -> None:
        """See to it that a job whose status is `cancelled` comes to its end: its groups, workers and weights."""
        ...

    async def ping(self) -> None:
        """Raises `Unavailable` where no controller could be started now."""
        ...

    async def reconcile(self) -> None:
        """Every job that runs, or has not yet ended as it is to, has a controller, and of those that are queued the
        ones near their place."""
        ...

    async def suspend(self) -> None:
        """Stop every controller and its workers; their jobs stay as they are."""
        ...

    async def close(self) -> None:
        """Start nothing more; what runs goes on."""
        ...


class RayControllerManager:
    """`ControllerManager` over what exists in a cluster: `actors`."""

    def __init__(self, settings: Settings, redis: Redis, actors: ControllerActors, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings, self._redis, self._actors, self._clock = settings, redis, actors, clock
        self._jobs = JobStore(redis)
        self._beats = ControllerHeartbeats(redis, settings)
        self._missed: dict[str, int] = {}
        """Looks in a row in which a controller had no beat."""
        self._one_at_a_time = asyncio.Lock()
        self._asked: set[str] = set()
        """Jobs of which no look has heard yet."""
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, settings: Settings, redis_url: str, redis: Redis) -> Self:
        """Over the Ray cluster that this process is connected to."""
        return cls(settings, redis, RayControllerActors(settings, redis_url))

    async def ensure(self, job: Job) -> None:
        self._look_soon(job.id)

    async def cancel(self, job_id: str) -> None:
        """See `ControllerManager`. A controller that runs sees the status by itself; a dead one is replaced."""
        self._look_soon(job_id)

    def _look_soon(self, job_id: str) -> None:
        """Many requests are one look: it is not made more often than every `LOOK_SECONDS`."""
        self._asked.add(job_id)
        self._raise_what_ended_the_looks()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_while_asked(), name="start controllers")

    def _raise_what_ended_the_looks(self) -> None:
        """An error that nobody foresaw ends the looks; it is raised where the next thing is asked, once."""
        looking = self._looking
        if looking is not None and looking.done() and not looking.cancelled() and looking.exception() is not None:
            self._looking = None
            looking.result()

    async def _look_while_asked(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, set()
            try:
                await self._start_due()
            except (HeadraceError, RedisError) as error:
                log.warning("could not start controllers; the next look tries again", error=str(error))
                if isinstance(error, Unavailable):
                    await self._report_not_yet(asked, error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _report_not_yet(self, asked: set[str], error: Unavailable) -> None:
        try:
            for job_id in asked:
                if (await self._jobs.get(job_id)).status == "queued":
                    await self._jobs.emit_event(job_id, f"Cannot start yet: {error.message}", level="warn")
        except (HeadraceError, RedisError) as fault:
            log.warning("jobs could not be told", error=str(fault))

    async def ping(self) -> None:
        await self._actors.ping()

    async def reconcile(self) -> None:
        """See `ControllerManager`. Raises the last error of any job, after it has seen to all."""
        self._raise_what_ended_the_looks()
        failed: Exception | None = None
        try:
            await self._start_due()
        except (HeadraceError, RedisError) as error:
            failed = error
        for job_id in await self._hanging(await self._actors.with_controller()):
            await self._replace(job_id)
        if failed is not None:
            raise failed

    async def _start_due(self) -> None:
        """Start what should run and does not. Raises as `reconcile` does."""
        async with self._one_at_a_time:
            there = await self._actors.with_controller()
            at_work = set(there) - set(await self._beats.starting(there))
            statuses = [standing for standing in await self._jobs.statuses() if not standing.at_rest]
            failed: Exception | None = None
            for standing in statuses:
                try:
                    if standing.status == "validating_files":
                        await self._take_over(standing.id)
                    elif standing.status != "queued" and standing.id not in at_work:
                        await self._end_or_start(standing, standing.id in there)
                except Damaged as error:  # of this job: no next look mends it, and the others are seen to
                    log_damaged_once(error)
                except (HeadraceError, RedisError) as error:
                    failed = error
            if any(standing.status == "queued" for standing in statuses):
                for job_id in await self._near_their_place():
                    if job_id not in at_work:
                        await self._start(job_id)
            if failed is not None:
                raise failed

    async def _take_over(self, job_id: str) -> None:
        """Queue a job whose gateway died after it had stored it."""
        if self._clock.time() - (await self._jobs.get(job_id)).created_at >= SUBMITTED_SECONDS:
            await self._jobs.move(job_id, "queued")
            await self._jobs.emit_event(
                job_id, "Queued: the gateway that had taken it in died before it could", level="warn"
            )

    async def _end_or_start(self, standing: JobStatus, has_controller: bool) -> None:
        """Of a job that is not queued, and has no controller at work."""
        never_began = standing.status in ("paused", "cancelled") and not has_controller
        if not (never_began and await self._nothing_exists_of(standing.id)):
            await self._start(standing.id)
            return
        if standing.status == "cancelled":
            await Ledger(self._redis, standing.id).close("cancelled")
        if await self._jobs.mark_at_rest(standing.id, standing.status) and standing.status == "paused":
            await self._jobs.emit_event(standing.id, "paused before it began; resume queues it again")

    async def _nothing_exists_of(self, job_id: str) -> bool:
        """Whether none of the job's workers was ever started, and so no group, weight or file of it exists. Of a ledger
        that is damaged nobody knows: then a controller sees to it."""
        try:
            return not await self._jobs.workers(job_id) and (await Ledger(self._redis, job_id).counts()).admitted == 0
        except Damaged as error:
            log_damaged_once(error)
            return False

    async def _queued(self) -> list[str]:
        """Oldest first."""
        return [standing.id for standing in await self._jobs.statuses() if standing.status == "queued"]

    async def _near_their_place(self) -> list[str]:
        """Of the queued jobs, oldest first, those that are to have a controller."""
        nodes, free = await self._actors.resources()
        window, near = QueueWindow(free), list[str]()
        for job_id in (await self._queued())[:MOST_LOOKED_AT]:  # as it is now: Ray may have needed half a minute
            try:
                job = await self._jobs.get(job_id)
            except Damaged:  # named wherever jobs are listed
                continue
            if window.takes(_plan(job, nodes)):
                near.append(job_id)
            if window.full:
                break
        return near

    async def suspend(self) -> None:
        await self.close()
        await asyncio.gather(*(self._actors.suspend(job_id) for job_id in await self._actors.with_controller()))

    async def close(self) -> None:
        if self._looking is not None:
            await cancel([self._looking])

    async def _hanging(self, there: Sequence[str]) -> list[str]:
        """Controllers that had no beat in several looks: one of them may have fallen just between two beats, or before
        the first one after Redis was away."""
        missing = await self._beats.missing(there)
        self._missed = {job_id: self._missed.get(job_id, 0) + 1 for job_id in missing}
        return [job_id for job_id, looks in self._missed.items() if looks >= MISSED_LOOKS]

    async def _replace(self, job_id: str) -> None:
        """Of any job: what is to be done for it, the next controller does, which a next look starts."""
        silent = self._settings.watchdog_seconds
        waits = [Wait("gateway", "a beat of the job's controller", silent)]
        await self._jobs.emit_event(
            job_id,
            f"the job's controller did not beat for {silent:.0f} s and is replaced",
            level="warn",
            data=Standstill(waits, "replace_controller"),
        )
        await RecoveryCounters(self._redis, job_id).count_action("replace_controller")
        await self._actors.kill(job_id)
        del self._missed[job_id]

    async def _start(self, job_id: str) -> None:
        """Start the job's controller, unless there is one, and tell it to run, unless it does."""
        await self._beats.record_start(job_id)
        await self._actors.start(job_id)


def _plan(job: Job, nodes: Sequence[dict[str, float]]) -> Plan | None:
    """What the job would reserve; None where no node takes it as they are."""
    try:
        return plan(Hyperparameters.model_validate(job.hyperparameters), nodes)
    except (InvalidRequest, ValidationError):  # its controller says so
        return None
