"""The gateway's side of the controllers: one named, detached Ray actor for each job that is not at rest.

    reconcile, every five seconds:  jobs in Redis ─┬─ not at rest, no actor ────────► start
                                                   ├─ not at rest, no beat yet ─────► tell it again to run
                                    actors in Ray ─┴─ no beat in several looks ─────► kill

After a restart of the gateway, and after the death of a controller, what should run and does not is started; one whose
gateway died before it had told it to run is told; one that is stopped or hangs is replaced. Every call of Ray has a
limit.

Invariant: what one job's controller raises does not keep another job's from being started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_core.errors import HeadraceError, Unavailable
from headrace_core.jobs import Job, JobStore
from headrace_core.logs import get_logger
from headrace_core.mending import Mending
from headrace_core.settings import Settings

from .controller import JobController
from .controller_beats import ControllerBeats
from .placement import NAMESPACE
from .supervisor import STOP_SECONDS

SUBMITTED_SECONDS = 60.0
"""A job that is stored is queued in less: all that can be refused has been by then."""
PING_SECONDS = 5.0
RAY_SECONDS = 30.0
MISSED_LOOKS = 3
PREFIX = "controller-"
T = TypeVar("T")


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

    def __init__(self, settings: Settings, redis_url: str, redis: Redis) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._redis = redis
        self._jobs = JobStore(redis)
        self._beats = ControllerBeats(redis, settings)
        self._missed: dict[str, int] = {}
        """Looks in a row in which a controller had no beat."""

    async def ensure(self, job: Job) -> None:
        """See `Controllers`."""
        await self._start(job.id)

    async def cancel(self, job_id: str) -> None:
        """See `Controllers`. A controller that runs sees the status by itself; a dead one is replaced."""
        await self._start(job_id)

    async def ping(self) -> None:
        """See `Controllers`."""
        nodes = await _ask(ray.nodes, seconds=PING_SECONDS)
        if not any(node["Alive"] for node in nodes):
            raise Unavailable("Ray has no node that is alive")

    async def reconcile(self) -> None:
        """See `Controllers`. Raises the last error of any job, after it has seen to all."""
        there = await _living()
        at_work = set(there) - set(await self._beats.starting(there))
        failed: Exception | None = None
        for job in await self._jobs.all():
            if not job.at_rest and job.id not in at_work:
                try:
                    if await self._is_queued(job):
                        await self._start(job.id)
                except (HeadraceError, RedisError) as error:
                    failed = error
        for job_id in await self._hanging(there):
            await self._replace(job_id)
        if failed is not None:
            raise failed

    async def _is_queued(self, job: Job) -> bool:
        """Whether it was handed over by the gateway that stored it; where that died in between, now."""
        if job.status != "validating_files":
            return True
        if time.time() - job.created_at < SUBMITTED_SECONDS:
            return False
        await self._jobs.move(job.id, "queued")
        await self._jobs.tell(job.id, "Queued: the gateway that had taken it in died before it could", level="warn")
        return True

    async def suspend(self) -> None:
        """See `Controllers`."""
        await asyncio.gather(*(_suspend(job_id) for job_id in await _living()))

    async def _hanging(self, there: Sequence[str]) -> list[str]:
        """Controllers that had no beat in several looks: one of them may have fallen just between two beats, or before
        the first one after Redis was away."""
        missing = await self._beats.missing(there)
        self._missed = {job_id: self._missed.get(job_id, 0) + 1 for job_id in missing}
        return [job_id for job_id, looks in self._missed.items() if looks >= MISSED_LOOKS]

    async def _replace(self, job_id: str) -> None:
        """Of any job: what is to be done for it, the next controller does, which a next look starts."""
        silent = self._settings.watchdog_seconds
        waits = [{"who": "gateway", "for": "a beat of the job's controller", "seconds": silent}]
        await self._jobs.tell(
            job_id,
            f"the job's controller did not beat for {silent:.0f} s and is replaced",
            level="warn",
            data={"waits": waits, "act": "replace_controller"},
        )
        await Mending(self._redis, job_id).acted("replace_controller")
        ray.kill(await _ask(ray.get_actor, _name(job_id), NAMESPACE))
        del self._missed[job_id]

    async def _start(self, job_id: str) -> None:
        """Start the job's controller, unless there is one, and tell it to run, unless it does."""
        await self._beats.starts(job_id)
        await _ask(self._started, job_id)

    def _started(self, job_id: str) -> None:
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


def _name(job_id: str) -> str:
    return PREFIX + job_id


async def _ask(call: Callable[..., T], *arguments: Any, seconds: float = RAY_SECONDS) -> T:
    """What Ray answers. Raises `Unavailable`."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(call, *arguments)
    except (RayError, RuntimeError, ValueError, TimeoutError) as error:
        raise Unavailable(f"Ray does not answer: {error or f'not within {seconds:.0f} s'}") from error


async def _living() -> list[str]:
    """Jobs that have a controller, whatever it does."""
    found = await _ask(lambda: list_named_actors(all_namespaces=True))
    names = [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]
    return [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]


async def _suspend(job_id: str) -> None:
    try:
        actor: Any = await _ask(ray.get_actor, _name(job_id), NAMESPACE)
    except Unavailable:  # it has none any more
        return
    try:
        async with asyncio.timeout(3 * STOP_SECONDS):
            await actor.suspend.remote()
    except (RayError, TimeoutError) as error:
        get_logger(__name__).warning("controller did not stop in good order and is ended", job=job_id, error=str(error))
    ray.kill(actor)
