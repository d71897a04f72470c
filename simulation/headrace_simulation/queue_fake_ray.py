"""Ray in the world of the queue: named actors, reservations of cores, and controllers whose jobs only hold their cores.

Invariants: of several reservations that fit, any may be served first, at random; the cores of an actor are free when it
has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from headrace_controller.actors import PREFIX
from headrace_controller.heartbeat import ControllerHeartbeats
from headrace_controller.job_controller import JobController
from headrace_controller.manager import RayControllerManager
from headrace_controller.ports import ControllerPorts, StoredFiles
from headrace_controller.queue_window import QueueWindow
from headrace_controller.workers.group import WorkerGroup
from headrace_controller.workers.supervisor import WorkerSupervisor
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import JobStore
from headrace_core.planning.resource_plan import Plan
from headrace_core.storage.job_folder import JobFolder
from headrace_core.storage.weight_store import default_root
from headrace_core.types.job import Job, Status
from headrace_simulation.queue_world import QueueWorld
from headrace_simulation.virtual_loop import Process
from headrace_simulation.world import WATCH_SECONDS, ProcessClock, forever

T = TypeVar("T")
QUEUE_PLANTS = ("queue_unbounded", "next_one_beside_those_that_fit", "queued_cancel_forgotten")
"""queue_unbounded: every queued job gets a controller · next_one_beside_those_that_fit: one more than allowed gets one
· queued_cancel_forgotten: a cancelled job that was queued is never marked at rest."""


class SimulatedRay:
    """The Ray of one world."""

    def __init__(self, world: QueueWorld, settings: Settings) -> None:
        self.world, self._settings = world, settings
        self.cores = world.plan.nodes
        self.back = 0.0
        """Virtual time until which Ray does not answer."""
        self.dies_starting: set[str] = set()
        """Gateways that die between creating an actor and calling its `run`."""
        self._actors = dict[str, Actor]()
        self._waiting: list[SimulatedPlacement] = []
        self._held: list[SimulatedPlacement] = []
        world.on_death.append(self._on_death)

    # ── for gateways ─────────────────────────────────────────────────────────────────────────────────────────────────

    def with_controller(self) -> list[str]:
        return list(self._actors)

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 1.0}] * self.cores

    def available(self) -> dict[str, float]:
        return {"CPU": float(self.free_cores())}

    def get(self, job_id: str) -> Actor:
        if (found := self._actors.get(job_id)) is None:
            raise Unavailable(f"Ray does not answer: no actor {PREFIX}{job_id}")
        return found

    def kill(self, gateway: Process, actor: Actor) -> None:
        gateway.check()
        self.world.kill(actor.process, "killed by a gateway")

    def start(self, gateway: Process, job_id: str) -> None:
        """Create the job's actor, unless it exists, and call its `run`."""
        actor = self._actors.get(job_id)
        if actor is None:
            actor = self._actors[job_id] = Actor(self.world, self._settings, job_id)
            self.world.note(actor.process.name, "is started")
            self.world.observer.starts(actor.number)
        if gateway.name in self.dies_starting:
            self.dies_starting.remove(gateway.name)
            self.world.kill(gateway, "between making an actor and telling it to run")
            return
        actor.run()

    # ── cores ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def free_cores(self) -> int:
        return self.cores - sum(placement.cores for placement in self._held)

    def add_nodes(self, count: int) -> None:
        self.cores += count
        self._serve()

    def reserve(self, placement: SimulatedPlacement) -> None:
        self._waiting.append(placement)
        self.world.loop.after(self.world.random.uniform(0.0, 0.2), self._serve)

    def give_back(self, placement: SimulatedPlacement) -> None:
        for those in (self._waiting, self._held):
            if placement in those:
                those.remove(placement)
        self._serve()

    def _serve(self) -> None:
        while fitting := [p for p in self._waiting if p.cores <= self.free_cores()]:
            placement = self.world.random.choice(fitting)
            self._waiting.remove(placement)
            self._held.append(placement)
            self.world.note(placement.owner.name, f"has {placement.cores} cores")
            try:
                self.world.observer.placed(self._number(placement.owner))
            except AssertionError as violation:
                self.world.broken = violation
                self.world.loop.interrupt()
            if not placement.reserved.done():
                placement.reserved.set_result(None)

    # ── for the observer ─────────────────────────────────────────────────────────────────────────────────────────────

    def actors(self, number: int) -> list[Actor]:
        return [actor for actor in self._actors.values() if actor.number == number and not actor.process.dead]

    def holds(self, number: int) -> bool:
        return any(self._number(placement.owner) == number for placement in self._held)

    def all_living(self) -> list[Process]:
        return [actor.process for actor in self._actors.values()]

    def _number(self, owner: Process) -> int:
        return int(owner.name.rpartition("-")[2])

    def _on_death(self, process: Process) -> None:
        self._actors = {job_id: actor for job_id, actor in self._actors.items() if actor.process is not process}
        for placement in [p for p in (*self._waiting, *self._held) if p.owner is process]:
            self.give_back(placement)


class Actor:
    """The process of one controller. After the first `run`, it loads for a while, then it works."""

    def __init__(self, world: QueueWorld, settings: Settings, job_id: str) -> None:
        self.number = world.job_ids.index(job_id)
        self.process = process = Process(f"controller-{self.number}")
        process.port, process.world = world.port(process), world
        self._world, self._settings, self._job_id = world, settings, job_id
        self._reported = False

    def run(self) -> None:
        if not self._reported:
            self._reported = True
            self._world.loop.after(self._world.random.uniform(0.3, 3.0), self._loaded)

    def _loaded(self) -> None:
        if not self.process.dead:
            self._world.spawn(self.process, self._lives)

    async def _lives(self) -> None:
        controller = queued_controller(self._settings, self._job_id, self._world, self.process)
        beating = asyncio.create_task(
            ControllerHeartbeats(self.process.port, self._settings).beat_forever(self._job_id)
        )
        await controller.run_until_at_rest()
        beating.cancel()
        self._world.kill(self.process, "its work is done")


def queued_controller(settings: Settings, job_id: str, world: QueueWorld, process: Process) -> JobController:
    """A real controller, whose workers only hold their cores for a while."""
    number, clock = world.job_ids.index(job_id), ProcessClock(process)
    job = JobRecord.on(process.port, job_id, clock)
    weights = settings.weights_dir or default_root()

    async def work(of: Job, workers: Sequence[WorkerSupervisor]) -> None:
        await job.store.record_worker_start(job_id, "learner", "learner")
        await asyncio.sleep(world.plan.jobs[number].work)
        await job.ledger.close("finished")

    ports = ControllerPorts(
        job=job,
        workers=WorkerGroup(settings, "simulated", job, QueueCluster(process), weights, weights, clock),
        files=StoredFiles(job_id, weights, weights, JobFolder.of(settings.data_dir, job_id).path),
        train=work,
        keep_memory_share=forever,
        idle_steps=_no_idle_steps,
        clock=clock,
        watch_seconds=WATCH_SECONDS,
    )
    return JobController(settings, ports)


class NoIdleSteps:
    """An `IdleWatch` (`headrace_controller.ports`) of a job that trains nothing."""

    async def check(self) -> None: ...

    async def end(self) -> None: ...


async def _no_idle_steps(job: Job) -> NoIdleSteps:
    return NoIdleSteps()


class QueueCluster:
    """The world's cores for the controller in `process`, a `headrace_controller.placement.Cluster`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def nodes(self) -> list[dict[str, float]]:
        return cast("list[dict[str, float]]", self._process.world.ray.nodes())

    async def only_node(self) -> bool:
        return False

    def reserve(self, plan: Plan) -> SimulatedPlacement:
        return SimulatedPlacement(self._process, plan)


class SimulatedPlacement:
    """The reservation of one controller, a `headrace_controller.placement.Reservation`."""

    def __init__(self, owner: Process, plan: Plan) -> None:
        self.owner = owner
        self.owner.check()
        self.cores = int(plan.total["CPU"])
        self._ray: SimulatedRay = self.owner.world.ray
        self.reserved: asyncio.Future[None] = self.owner.world.loop.create_future()
        self._ray.reserve(self)

    async def ready(self, timeout: float) -> bool:
        done, _ = await asyncio.wait([self.reserved], timeout=timeout)
        return bool(done)

    async def watch(self) -> None:
        await asyncio.Event().wait()

    def remove(self) -> None:
        if not self.owner.dead:
            self._ray.give_back(self)

    def start_learner(self, config: Any) -> Any:
        """Not used: no workers are started."""
        raise NotImplementedError

    def start(self, bundle: int, entry: str, config: Any) -> Any:
        """See `start_learner`."""
        raise NotImplementedError


class SimulatedActors:
    """The world's controllers for the gateway in `process`, `headrace_controller.actors.ControllerActors`."""

    def __init__(self, process: Process) -> None:
        self._process, self._ray = process, cast(SimulatedRay, process.world.ray)

    async def ping(self) -> None:
        await self._ask(self._ray.nodes)

    async def with_controller(self) -> list[str]:
        return await self._ask(self._ray.with_controller)

    async def resources(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        return await self._ask(self._ray.nodes), await self._ask(self._ray.available)

    async def start(self, job_id: str) -> None:
        await self._ask(self._ray.start, self._process, job_id)

    async def kill(self, job_id: str) -> None:
        self._ray.kill(self._process, await self._ask(self._ray.get, job_id))

    async def suspend(self, job_id: str) -> None:
        """Not used: the service of this world is never stopped."""
        raise NotImplementedError

    async def _ask(self, call: Callable[..., T], *arguments: Any, seconds: float = 30.0) -> T:
        """Ray's answer, after a delay. Raises `Unavailable` if it takes more than `seconds`."""
        world = self._process.world
        await asyncio.sleep(world.random.uniform(0.001, 0.05))
        away = world.ray.back - world.loop.now
        if away > 0:
            await asyncio.sleep(min(away, seconds))
            if away > seconds:
                raise Unavailable(f"Ray does not answer: not within {seconds:.0f} s")
        self._process.check()
        found = call(*arguments)
        await asyncio.sleep(world.random.uniform(0.001, 0.05))
        self._process.check()
        return found


def controller_manager(settings: Settings, process: Process) -> RayControllerManager:
    """The real controller manager of the gateway in `process`, with the world's actors and the planted bug, if any."""
    plant = process.world.plant
    return RayControllerManager(
        settings,
        process.port,
        SimulatedActors(process),
        ProcessClock(process),
        jobs=CancelForgotten(process.port) if plant == "queued_cancel_forgotten" else JobStore(process.port),
        window=_PLANTED_WINDOWS.get(plant, QueueWindow),
    )


class CancelForgotten(JobStore):
    """Planted bug: a job that was cancelled before it began is never marked as at rest."""

    async def mark_at_rest(self, job_id: str, status: Status) -> bool:
        return status == "cancelled" or await super().mark_at_rest(job_id, status)


class UnboundedWindow(QueueWindow):
    """Planted bug: every queued job gets a controller."""

    def takes(self, plan: Plan | None) -> bool:
        return True


class OneMoreWindow(QueueWindow):
    """Planted bug: the first job that does not fit gets a controller beside those that fit."""

    def takes(self, plan: Plan | None) -> bool:
        return super().takes(plan) or self.full


_PLANTED_WINDOWS = {"queue_unbounded": UnboundedWindow, "next_one_beside_those_that_fit": OneMoreWindow}
