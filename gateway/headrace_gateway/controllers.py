"""The gateway's side of the controllers: one named, detached Ray actor for each job that is under way.

The gateway holds no state of its own. `reconcile` compares the jobs in Redis with the actors in Ray and starts what
should run and does not: after a restart of the gateway, and after the death of a controller.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import ray
import structlog
from ray.exceptions import RayError

from headrace_core.errors import Unavailable
from headrace_core.jobs import Job, JobStore
from headrace_core.settings import Settings

from .controller import JobController
from .placement import NAMESPACE
from .supervisor import STOP_SECONDS

WITHOUT = ("validating_files",)
"""Statuses of a job that is not a controller's yet."""
PING_SECONDS = 5.0


class Controllers(Protocol):
    """What the gateway asks for."""

    async def ensure(self, job: Job) -> None:
        """Start the job's controller unless it runs; does not wait for the job."""
        ...

    async def cancel(self, job_id: str) -> None:
        """See to it that a job whose status is `cancelled` comes to its end: its groups, workers and weights."""
        ...

    async def ping(self) -> None:
        """Raises `Unavailable` where no controller could be started now."""
        ...

    async def reconcile(self) -> None:
        """Every job that is not at rest has a controller: one under way, and one that has not yet ended as it is to."""
        ...

    async def suspend(self) -> None:
        """Stop every controller and its workers; their jobs stay as they are."""
        ...


class RayControllers:
    """Controllers as actors of the Ray cluster this process is connected to."""

    def __init__(self, settings: Settings, redis_url: str, jobs: JobStore) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._jobs = jobs

    async def ensure(self, job: Job) -> None:
        """See `Controllers`."""
        await asyncio.to_thread(self._start, job.id)

    async def cancel(self, job_id: str) -> None:
        """See `Controllers`. A controller that runs sees the status by itself; a dead one is replaced."""
        await asyncio.to_thread(self._start, job_id)

    async def ping(self) -> None:
        """See `Controllers`."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await asyncio.to_thread(ray.nodes)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise Unavailable(f"Ray does not answer: {error}") from error

    async def reconcile(self) -> None:
        """See `Controllers`."""
        for job in await self._jobs.all():
            if _has_controller(job):
                await self.ensure(job)

    async def suspend(self) -> None:
        """See `Controllers`."""
        jobs = await self._jobs.all()
        await asyncio.gather(*(_suspend(job.id) for job in jobs if _has_controller(job)))

    def _start(self, job_id: str) -> None:
        actor: Any = (
            ray.remote(JobController)
            .options(
                name=_name(job_id),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_concurrency=16,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            )
            .remote(self._settings, self._redis_url, job_id)
        )
        actor.run.remote()  # a controller that runs already returns at once


def _has_controller(job: Job) -> bool:
    return not job.at_rest and job.status not in WITHOUT


def _name(job_id: str) -> str:
    return f"controller-{job_id}"


async def _suspend(job_id: str) -> None:
    try:
        actor: Any = await asyncio.to_thread(ray.get_actor, _name(job_id), NAMESPACE)
    except ValueError:  # it has none
        return
    try:
        async with asyncio.timeout(3 * STOP_SECONDS):
            await actor.suspend.remote()
    except (RayError, TimeoutError) as error:
        structlog.get_logger().warning(
            "controller did not stop in good order and is ended", job=job_id, error=str(error)
        )
    ray.kill(actor)
