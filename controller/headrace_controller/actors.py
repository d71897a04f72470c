"""Job controllers as Ray actors. Each is named after its job and detached, so that any gateway can find it.

Invariant: every call to Ray has a time limit, and raises `Unavailable` when Ray does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.logs import get_logger, redact_streams

from .job_controller import JobController
from .placement import NAMESPACE, alive_nodes
from .workers.supervisor import STOP_SECONDS

PING_SECONDS = 5.0
RAY_SECONDS = 30.0
PREFIX = "controller-"
"""An actor's name is this prefix and the job's id."""
T = TypeVar("T")


class ControllerActors(Protocol):
    """The controllers that exist, and the cluster's resources. Every method raises `Unavailable` without Ray."""

    async def ping(self) -> None:
        """Returns if a controller could be started now."""
        ...

    async def with_controller(self) -> list[str]:
        """Ids of the jobs that have a controller, whatever the controller does."""
        ...

    async def resources(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """(resources of each node that is alive, free resources of the whole cluster), under Ray's names."""
        ...

    async def start(self, job_id: str) -> None:
        """Start the job's controller and call its `run`. Does nothing where one runs already."""
        ...

    async def kill(self, job_id: str) -> None:
        """Kill the job's controller; Ray ends the worker processes that it started."""
        ...

    async def suspend(self, job_id: str) -> None:
        """Let the job's controller stop its workers, then end it. Does nothing where there is none."""
        ...


class JobControllerActor:
    """The Ray actor around a `JobController`: its process ends when the controller has finished."""

    def __init__(self, settings: Settings, redis_url: str, job_id: str) -> None:
        redact_streams()
        self._controller = JobController.from_config(settings, redis_url, job_id)

    async def run(self) -> None:
        """See `JobController.run`."""
        if await self._controller.run():
            ray.actor.exit_actor()

    async def suspend(self) -> None:
        """See `JobController.suspend`."""
        await self._controller.suspend()


class RayControllerActors:
    """`ControllerActors` in the Ray cluster that this process is connected to."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self._settings, self._redis_url = settings, redis_url

    async def ping(self) -> None:
        """See `ControllerActors`."""
        nodes = await _call_ray(ray.nodes, seconds=PING_SECONDS)
        if not any(node["Alive"] for node in nodes):
            raise Unavailable("Ray has no node that is alive")

    async def with_controller(self) -> list[str]:
        """See `ControllerActors`."""
        actors = await _call_ray(lambda: list_named_actors(all_namespaces=True))
        names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
        return [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]

    async def resources(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """See `ControllerActors`."""
        return await _call_ray(alive_nodes), await _call_ray(ray.available_resources)

    async def start(self, job_id: str) -> None:
        """See `ControllerActors`."""
        await _call_ray(self._start, job_id)

    def _start(self, job_id: str) -> None:
        actor: Any = (
            ray.remote(JobControllerActor)
            .options(
                name=PREFIX + job_id,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_concurrency=16,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            )
            .remote(self._settings, self._redis_url, job_id)
        )
        actor.run.remote()  # where get_if_exists found one that runs already, this returns at once

    async def kill(self, job_id: str) -> None:
        """See `ControllerActors`."""
        ray.kill(await _call_ray(ray.get_actor, PREFIX + job_id, NAMESPACE))

    async def suspend(self, job_id: str) -> None:
        """See `ControllerActors`."""
        try:
            actor: Any = await _call_ray(ray.get_actor, PREFIX + job_id, NAMESPACE)
        except Unavailable:  # the job has no controller any more
            return
        try:
            async with asyncio.timeout(3 * STOP_SECONDS):
                await actor.suspend.remote()
        except (RayError, TimeoutError) as error:
            get_logger(__name__).warning(
                "controller did not stop in good order and is ended", job=job_id, error=str(error)
            )
        ray.kill(actor)


async def _call_ray(call: Callable[..., T], *arguments: Any, seconds: float = RAY_SECONDS) -> T:
    """Call a blocking function of Ray in a thread. Raises `Unavailable` on an error, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(call, *arguments)
    except (RayError, RuntimeError, ValueError, TimeoutError) as error:
        raise Unavailable(f"Ray does not answer: {error or f'not within {seconds:.0f} s'}") from error
