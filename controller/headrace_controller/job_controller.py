"""The controller of one job: places its workers, supervises them, and says why when it gives up.

It runs as a Ray actor (`actors`); what it needs is handed to it (`ports`).

    queued ──resources──► running:  learner.run ┐
                                    rollout.run ┤ each under a supervisor (`workers`)
                                    evaluations ┤ every evaluation interval, on the first rollout worker
                                    hold        ┤ a node lost? ──► all are placed anew
                                    watch       ┘ cancelled? paused? too many failed groups? idle steps? no progress?
           all steps trained, last version evaluated ► ledger closed ► succeeded
           an error that no resume can mend          ► ledger closed ► failed, with the reason
           paused, by the user or `JobCannotContinue`       ► checkpoint, workers stopped, nothing closed
           cancelled, at any moment                  ► ledger closed, workers stopped, the learner's step lost
           suspend                                   ► workers stopped, nothing closed: the next controller goes on
    at rest ◄── nothing runs, and the status is still the one it ended or paused with; else all over again

Invariants: however it ends, no worker process, no placement and no published weights are left, and of a job that ended
no half-written file; all it knows is in Redis, so that another controller can take over at any moment, and it beats as
long as it lives; one that has been taken over from changes nothing of the job any more; a cancel ends whatever is under
way within `WATCH_SECONDS` + `STOP_SECONDS`, a pause after the learner's step and its checkpoint.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal, Self, TypeAlias

from ray.exceptions import RayError
from redis.exceptions import RedisError

from headrace_core.concurrency import cancel, run_with_background
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged, HeadraceError, InvalidState, Unavailable
from headrace_core.logs import get_logger
from headrace_core.redis_access.json_records import log_damaged_once
from headrace_core.types.events import JobPaused, RewardsFailed, RowsRefused, Standstill, Wait
from headrace_core.types.job import ENDED, Job, JobError, PausedBy, Status, model_name

from .failure_limits import (
    TooManyGenerationFailures,
    TooManyRewardFailures,
    check_generation,
    check_rewards,
)
from .heartbeat import ControllerHeartbeats
from .pause_reasons import OUT_OF_SPACE, JobCannotContinue, cannot_go_on
from .placement import PlacementLost
from .ports import ControllerPorts, IdleWatch
from .status_changes import Cancelled, Paused, StatusChanges, check_wanted
from .watchdog import Watchdog
from .workers.supervisor import STOP_SECONDS

Level: TypeAlias = Literal["info", "warn", "error"]
LOST = (RayError, Unavailable, TimeoutError)
"""What a controller can meet of its surroundings. It is no fault of the job's, and may be another's no more."""
REPLACED = "learner_replaced"
"""Code of a learner's error: another one has enlisted, so another controller has the job."""


class Replaced(Exception):
    """Another controller has the job."""


class JobController:
    """See the module's picture."""

    def __init__(self, settings: Settings, ports: ControllerPorts) -> None:
        self._settings, self._ports = settings, ports
        self._job_id, self._jobs, self._ledger = ports.job.id, ports.job.store, ports.job.ledger
        self._drains, self._recoveries = ports.job.drains, ports.job.recoveries
        self._group = ports.workers
        self._status = StatusChanges(self._jobs, self._job_id, ports.watch_seconds)
        self._life: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, settings: Settings, redis_url: str, job_id: str) -> Self:
        """A controller of real parts."""
        return cls(settings, ControllerPorts.from_config(settings, redis_url, job_id))

    async def run(self) -> bool:
        """Beat, and work until the job has ended or is suspended. False, at once: a call before does so already."""
        if self._life is not None:
            return False
        beating = asyncio.create_task(
            ControllerHeartbeats(self._ports.job.redis, self._settings).beat_forever(self._job_id)
        )
        self._life = asyncio.create_task(self.run_until_at_rest())
        await asyncio.wait([self._life])  # without a limit: as long as the job takes
        await cancel([beating])
        return True

    async def suspend(self) -> None:
        """Stop the workers but leave the job as it is; returns when no process of it is left."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life], timeout=2 * STOP_SECONDS)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run_until_at_rest(self) -> None:
        """Work on the job until it is at rest: it may be resumed or cancelled while it still pauses."""
        try:
            while not await self._jobs.mark_at_rest(self._job_id, await self._once()):
                pass
        except Replaced:
            get_logger(__name__).warning("another controller has the job; this one ends", job=self._job_id)
        except asyncio.CancelledError:
            await self._jobs.emit_event(self._job_id, "the service stops; the job goes on when it starts again")
        except RedisError as error:  # the job cannot even be marked; the gateway starts a controller when Redis is back
            get_logger(__name__).error("controller lost Redis", job=self._job_id, exc_info=error)
        except LOST as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
            await self._jobs.emit_event(self._job_id, f"its controller ends, another goes on: {reason}", level="warn")

    async def _once(self) -> Status:
        """Run the job until it has ended or pauses; in which status. Nothing of it runs afterwards."""
        ended: Status | None = None
        replaced = False
        try:
            ended = await self._ended()
        except Cancelled:  # it counts at any moment, also while the job pauses or fails
            await self._ledger.close("cancelled")
            ended = "cancelled"
        except Damaged as error:  # while it began, paused or ended: `_ended` has met the others
            ended = await self._end_damaged(error)
        except Replaced:
            replaced = True
            raise
        finally:
            await self._clean_up(ended if ended in ENDED else None, replaced)
        return ended

    async def _ended(self) -> Status:
        job = await self._jobs.get(self._job_id)
        if job.status in ("succeeded", "failed"):  # the controller before did not come to cleaning up
            return job.status
        try:
            check_wanted(job)
            idle = await self._ports.idle_steps(job)
            await run_with_background([self._work(job)], [self._watch(job, idle), self._ports.keep_memory_share()])
            await idle.end()
            name = model_name(job)
            return await self._end("succeeded", f"succeeded: the trained model is {name}", name)
        except Paused:
            return await self._pause("paused")
        except JobCannotContinue as error:
            return await self._pause_by_itself(error)
        except OUT_OF_SPACE as error:
            return await self._pause_by_itself(cannot_go_on(error, "job"))
        except (Cancelled, RedisError, *LOST):
            raise
        except Exception as error:
            return await self._fail(error)

    async def _work(self, job: Job) -> None:
        settings = Hyperparameters.model_validate(job.hyperparameters)
        await self._ledger.open(settings.limits(job.rows))
        running = job.status == "running"
        placed = running or (await self._ledger.counts()).admitted > 0
        while True:
            await self._group.place(job, again=placed)
            if not running:
                await self._status.move("running")
            running = placed = True
            try:
                await run_with_background(
                    [self._ports.train(job, self._group.workers)], [self._group.watch_placement()]
                )
            except PlacementLost as error:
                await self._report_placement_lost(error)
                await self._group.release()
            else:
                return

    async def _report_placement_lost(self, error: PlacementLost) -> None:
        data = Standstill([Wait(worker.name, "its place", 0.0) for worker in self._group.workers], "place_again")
        await self._jobs.emit_event(self._job_id, f"placed anew: {error}", level="warn", data=data)
        await self._recoveries.count_action("place_again")

    # ── watch ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, job: Job, idle: IdleWatch) -> None:
        """Raises what must end the work: the user's wish, too many failed groups, nothing learned, no progress."""
        settings, held = Hyperparameters.model_validate(job.hyperparameters), False
        watchdog = Watchdog(
            self._settings, job, self._jobs, self._ledger, self._recoveries, self._ports.clock.monotonic
        )
        while True:
            await asyncio.sleep(self._ports.watch_seconds)
            now = await self._jobs.get(self._job_id)
            check_wanted(now)
            if now.status == "queued" and self._group.workers:  # see `StatusChanges.move`
                await self._status.move("running")
            account = await self._ledger.counts()
            await check_rewards(self._jobs, self._job_id, account, settings)
            await check_generation(self._jobs, self._job_id, account, settings)
            await idle.check()
            held = await self._all_drained(job, held)
            await watchdog.check(self._group.workers, account, held)

    async def _all_drained(self, job: Job, before: bool) -> bool:
        """Whether the job is meant to stand still; the user is told when it begins to and when it ends."""
        workers = job.hyperparameters["rollout_workers"]
        now = await self._drains.covers_all(workers)
        if now and not before:
            message = "every rollout worker is drained: the job waits until one of them is undrained"
            await self._jobs.emit_event(self._job_id, message, level="warn")
        elif before and not now:
            await self._jobs.emit_event(self._job_id, "a rollout worker works again: the job goes on")
        return now

    # ── end ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _pause(self, message: str, level: Level = "info", data: JobPaused | None = None) -> Status:
        """The learner saves the step under way; what the others hold, they give back at once."""
        await run_with_background([self._stop()], [self._status.until_cancelled()])
        if (await self._jobs.get(self._job_id)).status == "paused":  # else it was resumed meanwhile
            await self._jobs.emit_event(self._job_id, f"{message}; resume goes on from here", level=level, data=data)
        return "paused"

    async def _stop(self) -> None:
        await self._group.stop()
        for worker in self._group.workers:
            await self._ledger.expire_leases_of(worker.name)  # what one held that did not stop in good order

    async def _pause_by_itself(self, error: JobCannotContinue) -> Status:
        """The status comes first: by it the learner knows that its last step is to be kept."""
        with suppress(Paused):  # the user was faster
            await self._status.move("paused", PausedBy(error.code, error.message, self._ports.clock.time()))
        return await self._pause(f"paused: {error.message}", "error", JobPaused(error.code, error.who))

    async def _end(
        self, status: Status, message: str, outcome: JobError | str, data: RewardsFailed | RowsRefused | None = None
    ) -> Status:
        await self._status.move(status, outcome)
        await self._jobs.emit_event(self._job_id, message, level="error" if status == "failed" else "info", data=data)
        return status

    async def _fail(self, error: Exception) -> Status:
        code = error.code if isinstance(error, HeadraceError) else "internal_error"
        if code == REPLACED:
            raise Replaced from error
        if not isinstance(error, HeadraceError):
            get_logger(__name__).error("job failed", job=self._job_id, exc_info=error)
        message = str(error) or type(error).__name__
        param = error.param if isinstance(error, HeadraceError) else None
        await self._ledger.close(code)
        data = error.data if isinstance(error, TooManyRewardFailures | TooManyGenerationFailures) else None
        return await self._end("failed", f"failed: {message}", JobError(code, message, param), data)

    async def _end_damaged(self, error: Damaged) -> Status:
        """Without that record the job can neither go on nor pause: it fails, unless it has ended. What else of it is
        damaged does not matter."""
        await self._ledger.close(error.code)
        try:
            await self._jobs.move(self._job_id, "failed", JobError(error.code, error.message, error.param))
        except InvalidState:
            log_damaged_once(error)
        else:
            await self._jobs.emit_event(self._job_id, f"failed: {error.message}", level="error")
        return await self._jobs.status(self._job_id)

    async def _clean_up(self, over: Status | None, replaced: bool) -> None:
        """Nothing of the job runs afterwards. Where it is over, what a next controller would go on from goes too; where
        it is another's, what that one needs stays."""
        try:
            await self._group.release()
        finally:
            if not replaced:
                self._ports.files.remove_weights()
            if over is not None:
                self._ports.files.remove_resumable_state()
                await self._ledger.close(over)
