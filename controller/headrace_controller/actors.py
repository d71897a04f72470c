"""Controllers as Ray actors: each job's is a named, detached actor, which any gateway finds by the job's id.

Invariant: every question to Ray has a limit; a Ray that does not answer is `Unavailable`.
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
"""Of an actor's name, before the job's id."""
T = TypeVar("T")


class ControllerActors(Protocol):
    """The controllers that exist, and the machines for their jobs. Every method raises `Unavailable`."""

    async def ping(self) -> None:
        """Returns where one could be started."""
        ...

    async def with_controller(self) -> list[str]:
        """Jobs that have one, whatever it does."""
        ...

    async def resources(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """(resources of each node, resources that nobody holds now), as Ray names them."""
        ...

    async def start(self, job_id: str) -> None:
        """Start the job's, unless there is one, and tell it to run, unless it does."""
        ...

    async def kill(self, job_id: str) -> None:
        """End the job's at once, and with it all that it started."""
        ...

    async def suspend(self, job_id: str) -> None:
        """Let the job's stop its workers, and end it. It may have ended before."""
        ...


class JobControllerActor:
    """Runs one job's controller in a process of its own, which ends with it."""

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
    """In the Ray cluster that this process is connected to."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self._settings, self._redis_url = settings, redis_url

    async def ping(self) -> None:
        """See `ControllerActors`."""
        nodes = await _ask(ray.nodes, seconds=PING_SECONDS)
        if not any(node["Alive"] for node in nodes):
            raise Unavailable("Ray has no node that is alive")

    async def with_controller(self) -> list[str]:
        """See `ControllerActors`."""
        found = await _ask(lambda: list_named_actors(all_namespaces=True))
        names = [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]
        return [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]

    async def resources(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """See `ControllerActors`."""
        return await _ask(alive_nodes), await _ask(ray.available_resources)

    async def start(self, job_id: str) -> None:
        """See `ControllerActors`."""
        await _ask(self._start, job_id)

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
        actor.run.remote()  # a controller that runs already returns at once

    async def kill(self, job_id: str) -> None:
        """See `ControllerActors`."""
        ray.kill(await _ask(ray.get_actor, PREFIX + job_id, NAMESPACE))

    async def suspend(self, job_id: str) -> None:
        """See `ControllerActors`."""
        try:
            actor: Any = await _ask(ray.get_actor, PREFIX + job_id, NAMESPACE)
        except Unavailable:  # it has none any more
            return
        try:
            async with asyncio.timeout(3 * STOP_SECONDS):
                await actor.suspend.remote()
        except (RayError, TimeoutError) as error:
            get_logger(__name__).warning(
                "controller did not stop in good order and is ended", job=job_id, error=str(error)
            )
        ray.kill(actor)


async def _ask(call: Callable[..., T], *arguments: Any, seconds: float = RAY_SECONDS) -> T:
    """What Ray answers. Raises `Unavailable`."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(call, *arguments)
    except (RayError, RuntimeError, ValueError, TimeoutError) as error:
        raise Unavailable(f"Ray does not answer: {error or f'not within {seconds:.0f} s'}") from error
