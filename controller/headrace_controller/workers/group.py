"""A job's workers and the place they have: reserved, supervised, and reserved anew where it is lost with a node.

    place ─► plan by the cluster's nodes ─► resources reserved ─► one Supervisor a worker
    hold  ─► `PlaceLost` ─► leave ─► place: fewer nodes make another plan
    stop  ─► in good order, for a pause

Invariant: after `release` no process of the job is left, and nothing is reserved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import Job
from headrace_core.jobs.reward_code_folder import rules_of
from headrace_core.protocols.worker import LEARNER_NAME, WorkerConfig, rollout_name
from headrace_core.restart_budget import RestartBudget
from headrace_core.storage.job_folder import JobFolder

from ..placement import ROLLOUT_ENTRY_POINT, Cluster, Plan, Reservation, plan
from ..worker_process import WorkerProcess
from .supervisor import STOP_SECONDS, WorkerSupervisor

LOOK_SECONDS = 1.0


class WorkerGroup:
    """Of one job. `weights` and `snapshots`: roots of the stores that its workers share."""

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        job: JobRecord,
        cluster: Cluster,
        weights: Path,
        snapshots: Path,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings, self._redis_url, self._cluster, self._clock = settings, redis_url, cluster, clock
        self._jobs, self._recoveries = job.store, job.recoveries
        self._weights, self._snapshots = weights, snapshots
        self._placement: Reservation | None = None
        self.workers: list[WorkerSupervisor] = []
        """The learner first."""

    async def place(self, job: Job, again: bool = False) -> None:
        """Reserve what the job needs, and make its supervisors; says what it waits for.

        No limit of its own: jobs queue for as long as others run, and one that was placed before (`again`) waits for
        nodes. Whoever watches the job ends it when it is cancelled. Raises `InvalidRequest` where no node will do.
        """
        resources = await self._planned(job, again)
        placement = self._placement = self._cluster.reserve(resources)
        if not await placement.ready(timeout=LOOK_SECONDS):
            await self._jobs.emit_event(job.id, f"queued: waits for {resources}, which other jobs hold")
            while not await placement.ready(timeout=LOOK_SECONDS):
                pass
        self._supervise(self._config(job, LEARNER_NAME, resources.threads(0)), placement.start_learner)
        for number, bundle in enumerate(range(resources.ranks, len(resources.bundles))):
            config = self._config(job, rollout_name(number), resources.threads(bundle))
            self._supervise(config, partial(placement.start, bundle, ROLLOUT_ENTRY_POINT))

    async def watch_placement(self) -> None:
        """Never returns. Raises `PlaceLost`."""
        assert self._placement is not None
        await self._placement.watch()

    async def stop(self) -> None:
        """Let the workers stop in good order: the learner saves the step under way."""
        patience = self._settings.watchdog_seconds
        await asyncio.gather(*(worker.stop(self._to_stop(worker), patience) for worker in self.workers))

    def _to_stop(self, worker: WorkerSupervisor) -> float:
        """Seconds that a worker may take to stop."""
        return self._settings.stall_timeout if worker.name == LEARNER_NAME else STOP_SECONDS

    async def release(self) -> None:
        """End every process at once, and give the place back. Idempotent."""
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.stop() for worker in workers))
        placement, self._placement = self._placement, None
        if placement is not None:
            placement.remove()

    def _supervise(self, config: WorkerConfig, launch: Callable[[WorkerConfig], WorkerProcess]) -> None:
        restarts = RestartBudget(self._settings.max_restarts, self._settings.restart_window)
        self.workers.append(WorkerSupervisor(config, launch, self._jobs, self._recoveries, restarts, self._clock))

    async def _planned(self, job: Job, again: bool) -> Plan:
        """The job's share. Of a cluster, nodes that are lacking may still be starting, or have just died: they are
        waited for as long as a worker's start may take. One machine does not grow: what it lacks is an error at once. A
        job that had its share once waits until there are nodes again."""
        settings, told = Hyperparameters.model_validate(job.hyperparameters), False
        deadline = self._clock.monotonic() + self._settings.start_timeout
        while True:
            nodes = await self._cluster.nodes()
            try:
                return plan(settings, nodes)
            except InvalidRequest as error:
                if not again and (await self._cluster.only_node() or self._clock.monotonic() > deadline):
                    raise
                if again and not told:
                    told = True
                    await self._jobs.emit_event(job.id, f"waits for nodes: {error}", level="warn")
            await asyncio.sleep(LOOK_SECONDS)

    def _config(self, job: Job, worker: str, threads: int) -> WorkerConfig:
        data = self._settings.data_dir.absolute()
        return WorkerConfig(
            job_id=job.id,
            worker=worker,
            redis_url=self._redis_url,
            redis_wait=self._settings.redis_wait,
            weights_root=str(self._weights),
            snapshots_root=str(self._snapshots),
            model_path=job.model_path,
            training_file=str(data / "files" / job.training_file),
            validation_file=None if job.validation_file is None else str(data / "files" / job.validation_file),
            fingerprints=job.fingerprints,
            output_dir=str(JobFolder.of(data, job.id).path),
            rows=job.rows,
            total_steps=job.total_steps,
            grader=job.grader,
            reward_rules=rules_of(self._settings, job.id),
            hyperparameters=job.hyperparameters,
            lease_seconds=self._settings.lease_seconds,
            start_timeout=self._settings.start_timeout,
            update_timeout=self._settings.update_timeout,
            stall_timeout=self._settings.stall_timeout,
            threads=threads,
        )
