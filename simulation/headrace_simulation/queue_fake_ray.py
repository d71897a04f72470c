"""Ray in the world of the queue: named actors, cores that are reserved, and a controller whose work is to hold them.

Invariants: of two who wait for cores, whichever fits may be served first, as the world's chance has it; what an actor
has reserved is free when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from headrace_controller.heartbeat import ControllerHeartbeats
from headrace_controller.job_controller import JobController
from headrace_controller.manager import NAMESPACE, PREFIX, RayControllerManager
from headrace_controller.placement import Plan
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Unavailable
from headrace_core.jobs.job_store import Job, JobStanding
from headrace_simulation.queue_world import QueueWorld
from headrace_simulation.virtual_loop import Process, here

T = TypeVar("T")
QUEUE_PLANTS = ("queue_unbounded", "next_one_beside_those_that_fit", "queued_cancel_forgotten")
"""Every queued job has a controller; the next one has, beside those that have room; of a queued job that is cancelled
nobody notes that it is at rest."""


class SimulatedRay:
    """Of one world."""

    def __init__(self, world: QueueWorld, settings: Settings) -> None:
        self.world, self._settings = world, settings
        self.cores = world.plan.nodes
        self.back = 0.0
        """Virtual time until which nobody is answered."""
        self.dies_starting: set[str] = set()
        """Gateways that die between making an actor and telling it to run."""
        self._actors = dict[str, Actor]()
        self._waiting: list[SimulatedPlacement] = []
        self._held: list[SimulatedPlacement] = []
        world.on_death.append(self._heard)

    # ── as the gateway asks for it ───────────────────────────────────────────────────────────────────────────────────

    def named(self) -> list[dict[str, str]]:
        return [{"name": PREFIX + job_id, "namespace": NAMESPACE} for job_id in self._actors]

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 1.0}] * self.cores

    def available(self) -> dict[str, float]:
        return {"CPU": float(self.free_cores())}

    def get(self, name: str, namespace: str) -> Actor:
        if (found := self._actors.get(name.removeprefix(PREFIX))) is None:
            raise ValueError(f"no actor {name}")
        return found

    def kill(self, actor: Actor) -> None:
        here().check()
        self.world.kill(actor.process, "killed by a gateway")

    def start(self, job_id: str) -> None:
        """Make the actor, unless there is one; tell it to run."""
        gateway, made = here(), self._actors.get(job_id)
        if made is None:
            made = self._actors[job_id] = Actor(self.world, self._settings, job_id)
            self.world.note(made.process.name, "is started")
            self.world.observer.starts(made.number)
        if gateway.name in self.dies_starting:
            self.dies_starting.remove(gateway.name)
            self.world.kill(gateway, "between making an actor and telling it to run")
            return
        made.run()

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

    # ── as the observer sees it ──────────────────────────────────────────────────────────────────────────────────────

    def actors(self, number: int) -> list[Actor]:
        return [actor for actor in self._actors.values() if actor.number == number and not actor.process.dead]

    def holds(self, number: int) -> bool:
        return any(self._number(placement.owner) == number for placement in self._held)

    def all_living(self) -> list[Process]:
        return [actor.process for actor in self._actors.values()]

    def _number(self, owner: Process) -> int:
        return int(owner.name.rpartition("-")[2])

    def _heard(self, process: Process) -> None:
        self._actors = {job_id: actor for job_id, actor in self._actors.items() if actor.process is not process}
        for placement in [p for p in (*self._waiting, *self._held) if p.owner is process]:
            self.give_back(placement)


class Actor:
    """The process of one controller: it loads a while, and runs once it is told to."""

    def __init__(self, world: QueueWorld, settings: Settings, job_id: str) -> None:
        self.number = world.job_ids.index(job_id)
        self.process = process = Process(f"controller-{self.number}")
        process.port, process.world = world.port(process), world
        self._world, self._settings, self._job_id = world, settings, job_id
        self._told = False

    def run(self) -> None:
        if not self._told:
            self._told = True
            self._world.loop.after(self._world.random.uniform(0.3, 3.0), self._loaded)

    def _loaded(self) -> None:
        if not self.process.dead:
            self._world.spawn(self.process, self._lives)

    async def _lives(self) -> None:
        await QueuedController(self._settings, self._job_id, self._world, self.number).live()
        self._world.kill(self.process, "its work is done")


class QueuedController(JobController):
    """The real one, whose workers are a while."""

    def __init__(self, settings: Settings, job_id: str, world: QueueWorld, number: int) -> None:
        super().__init__(settings, "simulated", job_id)
        self._world, self._number = world, number
        self._memory = cast(Any, SimpleNamespace(keep_allotted=asyncio.Event().wait))

    async def live(self) -> None:
        """Its whole life."""
        beating = asyncio.create_task(ControllerHeartbeats(self._redis, self._settings).beat_forever(self._job_id))
        await self._live()
        beating.cancel()

    async def _fail(self, error: Exception) -> Any:
        self._world.note(f"controller-{self._number}", f"fails: {type(error).__name__}: {error}")
        return await super()._fail(error)

    async def _idle_steps(self, job: Job) -> Any:
        return SimpleNamespace(look=_nothing, end=_nothing)

    async def _train(self, job: Job) -> None:
        await self._jobs.starts(self._job_id, "learner", "learner")
        await asyncio.sleep(self._world.plan.jobs[self._number].work)
        await self._finish()


async def _nothing() -> None: ...


class SimulatedPlacement:
    """Of one controller (`headrace_controller.placement.Placement`)."""

    def __init__(self, plan: Plan) -> None:
        self.owner = here()
        self.owner.check()
        self.cores = int(plan.total["CPU"])
        self._ray: SimulatedRay = self.owner.world.ray
        self.reserved: asyncio.Future[None] = self.owner.world.loop.create_future()
        self._ray.reserve(self)

    async def ready(self, timeout: float) -> bool:
        done, _ = await asyncio.wait([self.reserved], timeout=timeout)
        return bool(done)

    async def hold(self) -> None:
        await asyncio.Event().wait()

    def remove(self) -> None:
        if not self.owner.dead:
            self._ray.give_back(self)

    def start_learner(self, config: Any) -> Any:
        """No worker is started: what the job does is a while."""
        raise NotImplementedError

    def start(self, bundle: int, entry: str, config: Any) -> Any:
        """See `start_learner`."""
        raise NotImplementedError


class SimulatedControllers(RayControllerManager):
    """The real one, whose actors are the world's; with the planted bug, if there is one."""

    def _started(self, job_id: str) -> None:
        here().world.ray.start(job_id)

    async def _near_their_place(self) -> list[str]:
        near, plant = await super()._near_their_place(), here().world.plant
        if plant not in ("queue_unbounded", "next_one_beside_those_that_fit"):
            return near
        queued = await self._queued()
        return queued if plant == "queue_unbounded" else queued[: len(near) + 1]

    async def _end_or_start(self, standing: JobStanding, has_controller: bool) -> None:
        forgotten = here().world.plant == "queued_cancel_forgotten" and standing.status == "cancelled"
        if not (forgotten and not has_controller):
            await super()._end_or_start(standing, has_controller)


async def ask(call: Callable[..., T], *arguments: Any, seconds: float = 30.0) -> T:
    """`headrace_controller.manager._ask`, in virtual time."""
    process, world = here(), here().world
    await asyncio.sleep(world.random.uniform(0.001, 0.05))
    away = world.ray.back - world.loop.now
    if away > 0:
        await asyncio.sleep(min(away, seconds))
        if away > seconds:
            raise Unavailable(f"Ray does not answer: not within {seconds:.0f} s")
    process.check()
    try:
        found = call(*arguments)
    except (RuntimeError, ValueError) as error:
        raise Unavailable(f"Ray does not answer: {error}") from error
    await asyncio.sleep(world.random.uniform(0.001, 0.05))
    process.check()
    return found
