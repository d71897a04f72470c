"""The controller of one job: a Ray actor that places its workers, supervises them, and says why when it gives up.

    queued ──resources──► running:  learner.run ┐
                                    rollout.run ┤ each under a Supervisor
                                    evaluations ┤ every evaluation interval, on the first rollout worker
                                    watch       ┘ cancelled? paused? too many failed rewards? no progress?
           all steps trained, last version evaluated ► ledger closed ► succeeded
           an error                                  ► ledger closed ► failed, with the reason
           paused                                    ► checkpoint, workers stopped, nothing closed
           cancelled, at any moment                  ► ledger closed, workers stopped, the learner's step lost
           suspend                                   ► workers stopped, nothing closed: the next controller goes on
    at rest ◄── nothing runs, and the status is still the one it ended or paused with; else all over again

Invariants: however it ends, no worker process, no placement and no published weights are left, and of a job that ended
no half-written file; all it knows is in Redis, so that another controller can take over at any moment; a cancel ends
whatever is under way within `WATCH_SECONDS` + `STOP_SECONDS`, a pause after the learner's step and its checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import ray
import structlog
from redis.exceptions import RedisError

from headrace_core import snapshots
from headrace_core.concurrency import cancel
from headrace_core.drains import Drains
from headrace_core.errors import HeadraceError, InvalidRequest, InvalidState, TimedOut
from headrace_core.hyperparameters import Hyperparameters
from headrace_core.jobs import ENDED, Job, JobError, JobStore, Status, model_name
from headrace_core.ledger import Ledger
from headrace_core.metrics import EvaluationMetrics
from headrace_core.redis import connect
from headrace_core.settings import Settings
from headrace_core.weights import WeightStore, default_root
from headrace_core.workers import WorkerConfig

from .partials import remove_partials
from .placement import ROLLOUT, Placement, Plan, Process, alive_nodes, plan
from .reward_failures import RewardsFailing, check_rewards
from .supervisor import STOP_SECONDS, Supervisor

WATCH_SECONDS = 1.0
START_STOP_SECONDS = 5.0
LEARNER_NAME = "learner"


class Cancelled(Exception):
    """The user cancelled the job."""


class Paused(Exception):
    """The user paused the job."""


class JobController:
    """See the module's picture."""

    def __init__(self, settings: Settings, redis_url: str, job_id: str) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._job_id = job_id
        self._redis = connect(redis_url)
        self._jobs = JobStore(self._redis)
        self._ledger = Ledger(self._redis, job_id)
        self._drains = Drains(self._redis, job_id)
        self._weights_root = settings.weights_dir or default_root()
        self._snapshots_root = settings.snapshots_dir or default_root()
        self._life: asyncio.Task[None] | None = None
        self._placement: Placement | None = None
        self._workers: list[Supervisor] = []

    async def run(self) -> None:
        """Work until the job has ended or is suspended; a second call while it runs returns at once."""
        if self._life is None:
            self._life = asyncio.create_task(self._live())
            await asyncio.wait([self._life])
            ray.actor.exit_actor()

    async def suspend(self) -> None:
        """Stop the workers but leave the job as it is; returns when no process of it is left."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life], timeout=2 * STOP_SECONDS)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        """Until the job is at rest: it may be resumed or cancelled while it still pauses."""
        try:
            while not await self._jobs.rest(self._job_id, await self._once()):
                pass
        except asyncio.CancelledError:
            await self._jobs.tell(self._job_id, "the service stops; the job goes on when it starts again")
        except RedisError as error:  # the job cannot even be marked; the gateway starts a controller when Redis is back
            structlog.get_logger().error("controller lost Redis", job=self._job_id, exc_info=error)

    async def _once(self) -> Status:
        """Run the job until it has ended or pauses; in which status. Nothing of it runs afterwards."""
        ended: Status | None = None
        try:
            ended = await self._ended()
        except Cancelled:  # it counts at any moment, also while the job pauses or fails
            await self._ledger.close("cancelled")
            ended = "cancelled"
        finally:
            await self._clean_up(over=ended in ENDED)
        return ended

    async def _ended(self) -> Status:
        job = await self._jobs.get(self._job_id)
        if job.status in ("succeeded", "failed"):  # the controller before did not come to cleaning up
            return job.status
        try:
            _check_wanted(job)
            await self._until([self._work(job)], [self._watch(job)])
            await self._jobs.update(self._job_id, fine_tuned_model=model_name(job))
            return await self._end("succeeded", f"succeeded: the trained model is {model_name(job)}")
        except Paused:
            await self._until([self._pause()], [self._cancellation()])
            return "paused"
        except (Cancelled, RedisError):
            raise
        except Exception as error:
            return await self._fail(error)

    async def _pause(self) -> None:
        """The learner saves the step under way; what the others hold, they give back at once."""
        await asyncio.gather(*(worker.stop(self._to_pause(worker)) for worker in self._workers))
        for worker in self._workers:
            await self._ledger.lapse(worker.name)  # what one held that did not stop in good order
        await self._jobs.tell(self._job_id, "paused; resume goes on from here")

    def _to_pause(self, worker: Supervisor) -> float:
        """Seconds it may take to stop. One that still loads its model has nothing to keep."""
        if not worker.ready:
            return START_STOP_SECONDS
        return self._settings.stall_timeout if worker.name == LEARNER_NAME else STOP_SECONDS

    async def _cancellation(self) -> None:
        """Raises `Cancelled` once the job is."""
        while True:
            if (await self._jobs.get(self._job_id)).status == "cancelled":
                raise Cancelled
            await asyncio.sleep(WATCH_SECONDS)

    async def _work(self, job: Job) -> None:
        settings = Hyperparameters.model_validate(job.hyperparameters)
        await self._ledger.open(settings.limits(job.rows))
        await self._reserve(job, settings)
        if job.status != "running":
            await self._move("running")
        await asyncio.gather(*(worker.start() for worker in self._workers))
        learner, *rollouts = self._workers
        if job.validation_file and not await self._evaluated():
            await self._evaluate(rollouts[0], 0)
        main = [learner.run(), self._evaluations(job, settings, rollouts[0])]
        await self._until(main, [rollout.run() for rollout in rollouts], self._finish)

    async def _finish(self) -> None:
        """All is trained: the rollout workers see the closed ledger and end."""
        await self._ledger.close("finished")

    async def _reserve(self, job: Job, settings: Hyperparameters) -> None:
        resources = await self._planned(settings)
        placement = self._placement = Placement(resources)
        if not await placement.ready(timeout=WATCH_SECONDS):
            await self._jobs.tell(self._job_id, f"queued: waits for {resources}, which other jobs hold")
            while not await placement.ready(timeout=WATCH_SECONDS):
                pass  # no limit of its own: jobs queue for as long as others run; `watch` ends it when cancelled
        config = self._config(job, LEARNER_NAME, resources.threads(0))
        self._supervise(config, placement.start_learner)
        for number, bundle in enumerate(range(resources.ranks, len(resources.bundles))):
            config = self._config(job, f"rollout-{number}", resources.threads(bundle))
            self._supervise(config, partial(placement.start, bundle, ROLLOUT))

    def _supervise(self, config: WorkerConfig, launch: Callable[[WorkerConfig], Process]) -> None:
        self._workers.append(Supervisor(config, launch, self._jobs, self._settings.max_restarts))

    async def _planned(self, settings: Hyperparameters) -> Plan:
        """The job's share. Of a cluster, nodes that are lacking may still be starting: they are waited for as long as a
        worker's start may take. One machine does not grow: what it lacks is an error at once."""
        deadline = time.monotonic() + self._settings.start_timeout
        while True:
            nodes = alive_nodes()
            try:
                return plan(settings, nodes)
            except InvalidRequest:
                if len(nodes) == 1 or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(WATCH_SECONDS)

    def _config(self, job: Job, worker: str, threads: int) -> WorkerConfig:
        data = self._settings.data_dir.absolute()
        return WorkerConfig(
            job_id=job.id,
            worker=worker,
            redis_url=self._redis_url,
            weights_root=str(self._weights_root),
            snapshots_root=str(self._snapshots_root),
            model_path=job.model_path,
            training_file=str(data / "files" / job.training_file),
            validation_file=None if job.validation_file is None else str(data / "files" / job.validation_file),
            output_dir=str(data / "jobs" / job.id),
            rows=job.rows,
            total_steps=job.total_steps,
            grader=job.grader,
            reward_rules=self._settings.reward_rules,
            hyperparameters=job.hyperparameters,
            lease_seconds=self._settings.lease_seconds,
            start_timeout=self._settings.start_timeout,
            stall_timeout=self._settings.stall_timeout,
            threads=threads,
        )

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _evaluated(self) -> list[int]:
        """Policy versions evaluated so far, by this controller or one before."""
        return [data["step"] for _, kind, data in await self._jobs.metrics(self._job_id) if kind == "evaluation"]

    async def _evaluations(self, job: Job, settings: Hyperparameters, worker: Supervisor) -> None:
        """Every interval, and the last version for certain. Returns after the last."""
        if job.validation_file is None:
            return
        interval = settings.evaluation_interval(job.total_steps)
        last, signal = max(await self._evaluated(), default=0), "0"
        while last < job.total_steps:
            version, _ = await self._ledger.newest()
            if version // interval > last // interval or version == job.total_steps:
                await self._evaluate(worker, version)
                last = version
            else:
                signal = await self._ledger.signal(signal, WATCH_SECONDS)

    async def _evaluate(self, worker: Supervisor, version: int) -> None:
        result: EvaluationMetrics = await worker.call("evaluate", version)
        await self._jobs.record(self._job_id, result)
        mean = "none" if result.reward_mean is None else f"{result.reward_mean:.3f}"
        failed = f", {result.reward_failed} without a reward because it failed" if result.reward_failed else ""
        message = f"validation at step {version}: mean reward={mean} on {result.samples} samples{failed}"
        data = msgspec.to_builtins(result) | {"full_valid_mean_reward": result.reward_mean}
        await self._jobs.tell(self._job_id, message, type="metrics", data=data)

    # ── watch ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, job: Job) -> None:
        """Raises what must end the job: a cancellation, too many failed rewards, no progress."""
        settings = Hyperparameters.model_validate(job.hyperparameters)
        before, since, held = None, time.monotonic(), False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            _check_wanted(await self._jobs.get(self._job_id))
            account = await self._ledger.account()
            await check_rewards(self._jobs, self._job_id, account, settings)
            held = await self._all_drained(job, held)
            if account != before or held or not self._training():
                before, since = account, time.monotonic()
            elif time.monotonic() - since > self._settings.stall_timeout:
                raise TimedOut(
                    f"no group changed its state for {self._settings.stall_timeout:.0f} s: {account.states} at policy "
                    f"version {account.version}; workers: {await self._activities()}"
                )

    async def _all_drained(self, job: Job, before: bool) -> bool:
        """Whether the job is meant to stand still; the user is told when it begins to and when it ends."""
        workers = job.hyperparameters["rollout_workers"]
        now = await self._drains.hold_all(workers)
        if now and not before:
            message = "every rollout worker is drained: the job waits until one of them is undrained"
            await self._jobs.tell(self._job_id, message, level="warn")
        elif before and not now:
            await self._jobs.tell(self._job_id, "a rollout worker works again: the job goes on")
        return now

    def _training(self) -> bool:
        return bool(self._workers) and all(worker.ready for worker in self._workers)

    async def _activities(self) -> str:
        beats = await self._jobs.workers(self._job_id)
        return "; ".join(f"{b.worker} version {b.version}, {b.running} requests, waited {b.waiting}" for b in beats)

    # ── end ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, status: Status, message: str, data: dict[str, Any] | None = None) -> Status:
        await self._move(status)
        await self._jobs.tell(self._job_id, message, level="error" if status == "failed" else "info", data=data)
        return status

    async def _move(self, status: Status) -> None:
        """Raises `Cancelled` or `Paused` where the user was faster."""
        try:
            await self._jobs.move(self._job_id, status)
        except InvalidState:
            _check_wanted(await self._jobs.get(self._job_id))
            raise

    async def _fail(self, error: Exception) -> Status:
        if not isinstance(error, HeadraceError):
            structlog.get_logger().error("job failed", job=self._job_id, exc_info=error)
        code = error.code if isinstance(error, HeadraceError) else "internal_error"
        message = str(error) or type(error).__name__
        param = error.param if isinstance(error, HeadraceError) else None
        await self._ledger.close(code)
        await self._jobs.update(self._job_id, error=JobError(code, message, param))
        data = error.data if isinstance(error, RewardsFailing) else None
        return await self._end("failed", f"failed: {message}", data)

    async def _clean_up(self, over: bool) -> None:
        """Nothing of the job runs afterwards. Where it is over, also what a next controller would go on from goes."""
        try:
            await asyncio.gather(*(worker.stop() for worker in self._workers))
        finally:
            if self._placement is not None:
                self._placement.remove()
            self._workers, self._placement = [], None
            WeightStore(self._weights_root, self._job_id).remove()
            if over:
                snapshots.remove(self._snapshots_root, self._job_id)
                remove_partials(self._settings.data_dir.absolute() / "jobs" / self._job_id)

    async def _until(
        self,
        main: Iterable[Awaitable[Any]],
        beside: Iterable[Awaitable[Any]],
        finish: Any = None,
    ) -> None:
        """Run all until all of `main` have returned; the first error of any is raised, and nothing is left running.

        With `finish`, `beside` is told to end by it and waited for; without, it is cancelled.
        """
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in main]
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(a) for a in beside]
        try:
            await _all_or_first_error(tasks, others)
            if finish is not None:
                await finish()
                await asyncio.wait_for(asyncio.gather(*others), STOP_SECONDS)
        finally:
            await cancel([*tasks, *others])
            await asyncio.gather(*tasks, *others, return_exceptions=True)


async def _all_or_first_error(tasks: list[asyncio.Future[Any]], others: list[asyncio.Future[Any]]) -> None:
    pending = {*tasks, *others}
    while not all(task.done() for task in tasks):
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _check_wanted(job: Job) -> None:
    """Raises `Cancelled` or `Paused`."""
    if job.status == "cancelled":
        raise Cancelled
    if job.status == "paused":
        raise Paused
