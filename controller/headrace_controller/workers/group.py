"""A job's workers and their reserved resources.

    place            ─► plan for the cluster's nodes ─► resources reserved ─► one `WorkerSupervisor` per worker
    watch_placement  ─► `PlacementLost`: the caller calls `release`, then `place`, which plans for the nodes left
    stop             ─► the workers end in good order, for a pause

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
from headrace_core.jobs.reward_code_folder import rules_of
from headrace_core.planning.resource_plan import Plan, plan
from headrace_core.protocols.worker import LEARNER_NAME, WorkerConfig, rollout_name
from headrace_core.restart_budget import RestartBudget
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.job import Job

from ..placement import ROLLOUT_ENTRY_POINT, Cluster, Reservation
from ..worker_process import WorkerProcess
from .supervisor import STOP_SECONDS, WorkerSupervisor

POLL_SECONDS = 1.0


class WorkerGroup:
    """The workers of one job. `weights`, `snapshots`: root folders of the stores that the workers share."""

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
        """The learner, then the rollout workers; empty while nothing is placed."""

    async def place(self, job: Job, again: bool = False) -> None:
        """Reserve the job's resources, and create its supervisors. An event says what the job waits for.

        There is no time limit: a job waits as long as other jobs hold the resources, and a job that was placed before
        (`again`) waits for nodes. The caller cancels this call when the job is cancelled. Raises `InvalidRequest` if
        the nodes can never take the job.
        """
        resources = await self._wait_for_plan(job, again)
        placement = self._placement = self._cluster.reserve(resources)
        if not await placement.ready(timeout=POLL_SECONDS):
            await self._jobs.emit_event(job.id, f"queued: waits for {resources}, which other jobs hold")
            while not await placement.ready(timeout=POLL_SECONDS):
                pass
        self._supervise(self._config(job, LEARNER_NAME, resources, 0), placement.start_learner)
        for number, bundle in enumerate(range(resources.ranks, len(resources.bundles))):
            config = self._config(job, rollout_name(number), resources, bundle)
            self._supervise(config, partial(placement.start, bundle, ROLLOUT_ENTRY_POINT))

    async def watch_placement(self) -> None:
        """Never returns. Raises `PlacementLost`."""
        assert self._placement is not None
        await self._placement.watch()

    async def stop(self) -> None:
        """Let the workers stop in good order: the learner saves the step under way."""
        await asyncio.gather(*map(self._stop, self.workers))

    async def _stop(self, worker: WorkerSupervisor) -> None:
        """Stop one worker. The learner finishes a step, however long, and writes a checkpoint."""
        learns = worker.name == LEARNER_NAME
        limit = self._settings.stall_timeout if learns else STOP_SECONDS
        await worker.stop(limit, self._settings.watchdog_seconds, while_computing=learns)

    async def release(self) -> None:
        """End every process, and release the resources. Idempotent."""
        workers, self.workers = self.workers, []
        await asyncio.gather(*(worker.stop() for worker in workers))
        placement, self._placement = self._placement, None
        if placement is not None:
            placement.remove()

    def _supervise(self, config: WorkerConfig, launch: Callable[[WorkerConfig], WorkerProcess]) -> None:
        restarts = RestartBudget(self._settings.max_restarts, self._settings.restart_window)
        self.workers.append(WorkerSupervisor(config, launch, self._jobs, self._recoveries, restarts, self._clock))

    async def _wait_for_plan(self, job: Job, again: bool) -> Plan:
        """The plan for the job's resources, once the cluster has nodes for it. Raises `InvalidRequest`.

        The missing nodes of a cluster may be starting, or have just died: they are waited for, up to `start_timeout`. A
        single machine does not grow, so that there the error is immediate. A job that was placed before (`again`) waits
        without a limit.
        """
        settings, reported = Hyperparameters.model_validate(job.hyperparameters), False
        deadline = self._clock.monotonic() + self._settings.start_timeout
        while True:
            nodes = await self._cluster.nodes()
            try:
                return plan(settings, nodes)
            except InvalidRequest as error:
                if not again and (await self._cluster.only_node() or self._clock.monotonic() > deadline):
                    raise
                if again and not reported:
                    reported = True
                    await self._jobs.emit_event(job.id, f"waits for nodes: {error}", level="warn")
            await asyncio.sleep(POLL_SECONDS)

    def _config(self, job: Job, worker: str, resources: Plan, bundle: int) -> WorkerConfig:
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
            threads=resources.threads(bundle),
            gpus=resources.gpus(bundle),
        )
