"""Ray in a simulated world: starts processes, the controller among them, passes calls, reports deaths, and kills.

Invariants: only a living process can use the cluster; a caller that waits for a dead process gets an error, later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from redis.exceptions import RedisError

from headrace_controller.idle_steps import IdleSteps
from headrace_controller.job_controller import JobController
from headrace_controller.ports import ControllerPorts
from headrace_controller.workers.group import WorkerGroup
from headrace_controller.workers.training import train
from headrace_core.config.service_settings import Settings
from headrace_core.errors import HeadraceError
from headrace_core.jobs.job_record import JobRecord
from headrace_core.planning.resource_plan import Plan
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.job_folder import remove_partials
from headrace_core.storage.weight_store import WeightStore
from headrace_rollout.worker import RolloutWorker
from headrace_simulation.fake_learner import SimulatedLearner
from headrace_simulation.virtual_loop import PROCESS, Process
from headrace_simulation.wiring import rollout_ports
from headrace_simulation.world import WATCH_SECONDS, ProcessClock, World, forever

MESSAGE_SECONDS = 0.004
"""Latency of a call between two processes, in each direction."""
DEATH_NOTICED_SECONDS = 0.5
"""Time until Ray fails the calls to a dead process."""


class Handle:
    """A worker's process, for its supervisor (a `WorkerProcess` of `headrace_controller`)."""

    def __init__(self, cluster: Cluster, config: WorkerConfig) -> None:
        self._cluster, self._world = cluster, cluster.world
        self.process = cluster.process(config.worker)
        self._worker: Any = None
        self._config = config
        self._pending: list[asyncio.Future[Any]] = []

    async def start(self) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._ask("start"))

    async def run(self) -> str:
        return str(await self._ask("run"))

    async def stop(self) -> None:
        await self._ask("stop")

    async def ping(self) -> None:
        await self._ask("ping")

    async def call(self, method: str, *arguments: Any) -> Any:
        return await self._ask(method, *arguments)

    def kill(self) -> None:
        self._cluster.check()
        self._world.kill(self.process, "killed by its supervisor")

    def died(self) -> None:
        """Fail all pending calls, after a while."""
        for pending in self._pending:
            self._world.loop.after(DEATH_NOTICED_SECONDS, _fail, pending, RayActorError())

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self._cluster.check()
        if self.process.dead:
            raise RayActorError
        pending = self._world.loop.create_future()
        self._pending.append(pending)
        self._world.loop.after(MESSAGE_SECONDS, self._begin, pending, method, arguments)
        return await pending

    def _begin(self, pending: asyncio.Future[Any], method: str, arguments: Sequence[Any]) -> None:
        if not self.process.dead:
            self._world.spawn(self.process, lambda: self._answer(pending, method, arguments))

    async def _answer(self, pending: asyncio.Future[Any], method: str, arguments: Sequence[Any]) -> None:
        try:
            if self._worker is None:
                self._worker = self._made()
            found = None if method == "ping" else await getattr(self._worker, method)(*arguments)
        except (HeadraceError, RedisError) as error:
            self._world.note(self.process.name, f"{method} failed: {type(error).__name__}: {error}")
            self._world.loop.after(MESSAGE_SECONDS, _fail, pending, _as_ray(error))
        else:
            self._world.loop.after(MESSAGE_SECONDS, _succeed, pending, found)

    def _made(self) -> Any:
        if self._config.worker == "learner":
            return SimulatedLearner(self._config, self._world, self.process)
        return RolloutWorker(self._config, rollout_ports(self._world, self.process, self._config))


def _as_ray(error: Exception) -> RayTaskError:
    return RayTaskError("simulated", "", error, proctitle="simulated", pid=0, ip="0.0.0.0")


def _fail(pending: asyncio.Future[Any], error: Exception) -> None:
    if not pending.done():
        pending.set_exception(error)


def _succeed(pending: asyncio.Future[Any], found: Any) -> None:
    if not pending.done():
        pending.set_result(found)


class SimulatedReservation:
    """A reservation (`headrace_controller.placement.Reservation`) that always has capacity for every worker."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def ready(self, timeout: float) -> bool:
        return True

    async def watch(self) -> None:
        await forever()

    def start_learner(self, config: WorkerConfig) -> Handle:
        return self._cluster.launch(config)

    def start(self, bundle: int, entry: str, config: WorkerConfig) -> Handle:
        return self._cluster.launch(config)

    def remove(self) -> None:
        """Nothing to do: the processes end with their controller."""


def controller_ports(cluster: Cluster, process: Process, settings: Settings) -> ControllerPorts:
    """The components of the controller in `process`: its workers are processes of the world; Redis has enough
    memory."""
    world, clock = cluster.world, ProcessClock(process)
    job = JobRecord.on(process.port, world.job_id, clock)
    weights, memory = world.weights.parent, world.folder
    return ControllerPorts(
        job=job,
        workers=WorkerGroup(settings, "simulated", job, cluster, weights, memory, clock),
        files=FilesUnlessDead(world, process),
        train=partial(train, job),
        keep_memory_share=forever,
        idle_steps=partial(IdleSteps.at_current_version, job),
        clock=clock,
        watch_seconds=WATCH_SECONDS,
    )


class FilesUnlessDead:
    """A job's files (`headrace_controller.ports.JobFiles`), which a dead controller can no longer remove."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def remove_weights(self) -> None:
        if not self._process.dead:
            WeightStore(self._world.weights.parent, self._world.job_id).remove()

    def remove_resumable_state(self) -> None:
        if not self._process.dead:
            self._world.snapshots = []
            remove_partials(self._world.output)


class Cluster:
    """The processes of one job, and the `Cluster` (`headrace_controller.placement`) of its controllers."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self._settings = world, settings
        self.controller: Process | None = None
        self.handles: list[Handle] = []
        world.on_death.append(self._on_death)

    def process(self, name: str) -> Process:
        """A new process of this name."""
        process = Process(name)
        process.port, process.world = self.world.port(process), self.world
        process.offset = self.world.offsets.get(name, 0.0)
        return process

    def check(self) -> None:
        """Raises `CancelledError` if the calling process is dead."""
        if (process := PROCESS.get()) is not None:
            process.check()

    async def nodes(self) -> list[dict[str, float]]:
        """One node, with enough cores for all workers of a job of `fault_plan`."""
        return [{"CPU": 64.0}]

    async def only_node(self) -> bool:
        """True: the cluster does not grow."""
        return True

    def reserve(self, plan: Plan) -> SimulatedReservation:
        """A reservation that is ready at once."""
        return SimulatedReservation(self)

    def launch(self, config: WorkerConfig) -> Handle:
        """Start a worker's process."""
        self.check()
        handle = Handle(self, config)
        self.handles.append(handle)
        self.world.note(config.worker, "is started")
        return handle

    def control(self) -> None:
        """Start a controller, unless one lives."""
        if self.controller is None or self.controller.dead:
            self.controller = process = self.process("controller")
            self.world.note("controller", "is started")
            self.world.spawn(process, lambda: self._controlled(process))

    async def _controlled(self, process: Process) -> None:
        await JobController(self._settings, controller_ports(self, process, self._settings)).run_until_at_rest()
        self.world.kill(process, "its work is done")

    def living(self, name: str) -> list[Process]:
        """Living processes of this name."""
        living = [h.process for h in self.handles if h.process.name == name and not h.process.dead]
        if name == "controller" and self.controller is not None and not self.controller.dead:
            living.append(self.controller)
        return living

    def all_living(self) -> list[Process]:
        """All living processes."""
        return [p for p in (self.controller, *(h.process for h in self.handles)) if p is not None and not p.dead]

    def _on_death(self, process: Process) -> None:
        for handle in self.handles:
            if handle.process is process:
                handle.died()
        if process is self.controller:  # an actor's processes end with it
            for handle in self.handles:
                if not handle.process.dead:
                    self.world.loop.after(0.2, self.world.kill, handle.process, "its controller is dead")
        self.handles = [h for h in self.handles if not h.process.dead]
