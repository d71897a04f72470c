"""The gateway's side of the controllers: keeps one named, detached Ray actor for each job that needs one. These are
the jobs that run, the jobs that end, and the first jobs of the queue (`queue_window`).

    reconcile, every five      jobs in Redis ─┬─ runs or ends, no actor ─────► start the actor
    seconds, and soon after                   ├─ first in the queue ─────────► start the actor
    a submission, a resume                    ├─ not at rest, no heartbeat ──► call the actor's `run` again
    or a cancel                               └─ paused or cancelled, never ─► mark it at rest: it has no workers or
                                                 started                       files that a controller would remove
                               actors in Ray ─── no heartbeat in several polls ─► kill

So a controller that is missing is started after a restart of the gateway or the controller's death; a controller whose
gateway died before it called `run` is run; a controller that is stopped or hangs is replaced. Every call to Ray has a
time limit.

Invariants: an error in one job does not keep the controller of another job from being started; a job that waits without
a controller has nothing but its record, so that any gateway may start its controller or mark its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import cancel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged, HeadraceError, InvalidRequest, Unavailable
from headrace_core.jobs.job_store import JobStatus, JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.ledger import Ledger
from headrace_core.logs import get_logger
from headrace_core.planning.resource_plan import Plan, plan
from headrace_core.redis_access.json_records import log_damaged_once
from headrace_core.types.events import Standstill, Wait
from headrace_core.types.job import Job

from .actors import ControllerActors, RayControllerActors
from .heartbeat import ControllerHeartbeats
from .queue_window import QueueWindow

SUBMISSION_SECONDS = 60.0
"""A stored job is queued within this time, because everything that can be rejected is checked before it is stored. One
that is not has lost its gateway."""
MAX_MISSED_HEARTBEATS = 3
POLL_SECONDS = 0.5
MAX_QUEUED_READ = 200
"""Queued jobs that one poll reads at most: more are not placed between two polls."""
log = get_logger(__name__)


class ControllerManager(Protocol):
    """What the gateway needs of the controllers."""

    async def ensure(self, job: Job) -> None:
        """Have the job run once there are resources, or brought to the end that its status says. Returns at once."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Have a job whose status is `cancelled` ended: its groups, workers and weights. Returns at once."""
        ...

    async def ping(self) -> None:
        """Raises `Unavailable` if no controller could be started now."""
        ...

    async def reconcile(self) -> None:
        """Start the controllers that are missing, and replace those that do not respond (see the module)."""
        ...

    async def suspend(self) -> None:
        """Stop every controller and its workers. The jobs keep their status, and continue with the next controller."""
        ...

    async def close(self) -> None:
        """Start no more controllers; those that run continue."""
        ...


class RayControllerManager:
    """`ControllerManager` over the actors of a cluster."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        actors: ControllerActors,
        clock: Clock = SYSTEM_CLOCK,
        *,
        jobs: JobStore | None = None,
        window: Callable[[Mapping[str, float]], QueueWindow] = QueueWindow,
    ) -> None:
        """`jobs`: the jobs in `redis`. `window`: the queue window of one poll, given the free resources."""
        self._settings, self._redis, self._actors, self._clock = settings, redis, actors, clock
        self._jobs, self._window = jobs or JobStore(redis), window
        self._beats = ControllerHeartbeats(redis, settings)
        self._missed: dict[str, int] = {}
        """By job: polls in a row in which its controller had no heartbeat."""
        self._poll_lock = asyncio.Lock()
        self._requested: set[str] = set()
        """Jobs that were passed to `ensure` or `cancel` since the last poll began."""
        self._polling: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, settings: Settings, redis_url: str, redis: Redis) -> Self:
        """A manager for the Ray cluster that this process is connected to."""
        return cls(settings, redis, RayControllerActors(settings, redis_url))

    async def ensure(self, job: Job) -> None:
        self._poll_soon(job.id)

    async def cancel(self, job_id: str) -> None:
        """See `ControllerManager`. A running controller polls the job's status itself; only a missing one is
        started."""
        self._poll_soon(job_id)

    def _poll_soon(self, job_id: str) -> None:
        """Start a poll in the background, at most one every `POLL_SECONDS`: many requests share one poll."""
        self._requested.add(job_id)
        self._raise_poll_error()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll_while_requested(), name="start controllers")

    def _raise_poll_error(self) -> None:
        """Raise the unexpected error that ended the background polls, once, from the next request."""
        polling = self._polling
        if polling is not None and polling.done() and not polling.cancelled() and polling.exception() is not None:
            self._polling = None
            polling.result()

    async def _poll_while_requested(self) -> None:
        while self._requested:
            requested, self._requested = self._requested, set()
            try:
                await self._start_due()
            except (HeadraceError, RedisError) as error:
                log.warning("could not start controllers; the next poll retries", error=str(error))
                if isinstance(error, Unavailable):
                    await self._report_cannot_start(requested, error)
            await asyncio.sleep(POLL_SECONDS)

    async def _report_cannot_start(self, requested: set[str], error: Unavailable) -> None:
        try:
            for job_id in requested:
                if (await self._jobs.get(job_id)).status == "queued":
                    await self._jobs.emit_event(job_id, f"Cannot start yet: {error.message}", level="warn")
        except (HeadraceError, RedisError) as fault:
            log.warning("could not record in the jobs' events that they cannot start", error=str(fault))

    async def ping(self) -> None:
        await self._actors.ping()

    async def reconcile(self) -> None:
        """See `ControllerManager`. Handles every job, then raises the last error that one of them met."""
        self._raise_poll_error()
        failed: Exception | None = None
        try:
            await self._start_due()
        except (HeadraceError, RedisError) as error:
            failed = error
        for job_id in await self._unresponsive(await self._actors.with_controller()):
            await self._replace(job_id)
        if failed is not None:
            raise failed

    async def _start_due(self) -> None:
        """Start the controllers that are missing. Raises like `reconcile`."""
        async with self._poll_lock:
            existing = await self._actors.with_controller()
            at_work = set(existing) - set(await self._beats.starting(existing))
            statuses = [standing for standing in await self._jobs.statuses() if not standing.at_rest]
            failed: Exception | None = None
            for standing in statuses:
                try:
                    if standing.status == "validating_files":
                        await self._queue_abandoned(standing.id)
                    elif standing.status != "queued" and standing.id not in at_work:
                        await self._end_or_start(standing, standing.id in existing)
                except Damaged as error:  # no retry repairs this job's record, and the other jobs must go on
                    log_damaged_once(error)
                except (HeadraceError, RedisError) as error:
                    failed = error
            if any(standing.status == "queued" for standing in statuses):
                for job_id in await self._next_to_place():
                    if job_id not in at_work:
                        await self._start(job_id)
            if failed is not None:
                raise failed

    async def _queue_abandoned(self, job_id: str) -> None:
        """Queue a job whose gateway died between storing it and queueing it."""
        if self._clock.time() - (await self._jobs.get(job_id)).created_at >= SUBMISSION_SECONDS:
            await self._jobs.move(job_id, "queued")
            await self._jobs.emit_event(
                job_id, "Queued: the gateway that had taken it in died before it could", level="warn"
            )

    async def _end_or_start(self, standing: JobStatus, has_controller: bool) -> None:
        """Handle a job that is not queued and whose controller is missing or does not run: mark it at rest if it never
        started, else start its controller."""
        never_began = standing.status in ("paused", "cancelled") and not has_controller
        if not (never_began and await self._has_nothing(standing.id)):
            await self._start(standing.id)
            return
        if standing.status == "cancelled":
            await Ledger(self._redis, standing.id).close("cancelled")
        if await self._jobs.mark_at_rest(standing.id, standing.status) and standing.status == "paused":
            await self._jobs.emit_event(standing.id, "paused before it began; resume queues it again")

    async def _has_nothing(self, job_id: str) -> bool:
        """Whether no worker of the job was ever started, so that it has no groups, weights or files. False for a
        damaged ledger, which cannot tell: then a controller cleans up."""
        try:
            return not await self._jobs.workers(job_id) and (await Ledger(self._redis, job_id).counts()).admitted == 0
        except Damaged as error:
            log_damaged_once(error)
            return False

    async def _queued(self) -> list[str]:
        """Ids of the queued jobs, oldest first."""
        return [standing.id for standing in await self._jobs.statuses() if standing.status == "queued"]

    async def _next_to_place(self) -> list[str]:
        """The queued jobs that get a controller now (`queue_window`), oldest first."""
        nodes, free = await self._actors.resources()
        window, selected = self._window(free), list[str]()
        # The queue is read after Ray's answer, which may have taken half a minute.
        for job_id in (await self._queued())[:MAX_QUEUED_READ]:
            try:
                job = await self._jobs.get(job_id)
            except Damaged:  # reported wherever jobs are listed
                continue
            if window.takes(_plan(job, nodes)):
                selected.append(job_id)
            if window.full:
                break
        return selected

    async def suspend(self) -> None:
        await self.close()
        await asyncio.gather(*(self._actors.suspend(job_id) for job_id in await self._actors.with_controller()))

    async def close(self) -> None:
        if self._polling is not None:
            await cancel([self._polling])

    async def _unresponsive(self, existing: Sequence[str]) -> list[str]:
        """The jobs whose controller had no heartbeat in several polls in a row. A single poll proves nothing: the key
        may expire between two heartbeats, or before the first heartbeat after Redis was unavailable."""
        missing = await self._beats.missing(existing)
        self._missed = {job_id: self._missed.get(job_id, 0) + 1 for job_id in missing}
        return [job_id for job_id, polls in self._missed.items() if polls >= MAX_MISSED_HEARTBEATS]

    async def _replace(self, job_id: str) -> None:
        """Kill the job's controller, whatever the job's status; the next poll starts a new one."""
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
        """Start the job's controller, unless it exists, and call its `run`, unless it runs."""
        await self._beats.record_start(job_id)
        await self._actors.start(job_id)


def _plan(job: Job, nodes: Sequence[dict[str, float]]) -> Plan | None:
    """The resources that the job would reserve; None if no node of the present cluster can take it."""
    try:
        return plan(Hyperparameters.model_validate(job.hyperparameters), nodes)
    except (InvalidRequest, ValidationError):  # the job's controller reports it
        return None
