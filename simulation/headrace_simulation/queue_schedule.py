"""One schedule of the queue: jobs are submitted, paused, resumed and cancelled while they wait, and processes die.

plan ──► users' requests to gateways ──► each gateway reconciles every five seconds and after a request ──► controllers
ended ◄── every job has ended, is at rest and has no controller, within `FINISHED_WITHIN`, else `Violation`
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import HeadraceError, InvalidState, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access import keys
from headrace_core.types.job import ENDED, Job
from headrace_gateway.app import is_leader
from headrace_simulation.fault_plan import FAULT_SECONDS, ROWS, Fault
from headrace_simulation.queue_fake_ray import SimulatedRay, controller_manager
from headrace_simulation.queue_fault_plan import NODES_COME_AT, QueuePlan
from headrace_simulation.queue_world import QueueWorld
from headrace_simulation.redis_port import Command, Packed, Server
from headrace_simulation.schedule import QUIET, RECONCILE_SECONDS, advanced, settings_of
from headrace_simulation.virtual_loop import Process
from headrace_simulation.world import EPOCH

Request = Callable[["Gateway"], Awaitable[None]]
RETRY_SECONDS = 1.0
LEASE_SECONDS = 3.0
_CLEAR = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"


class Gateway:
    """One process of a gateway; a restarted one is a new `Gateway`."""

    def __init__(self, world: QueueWorld, name: str, folder: Path) -> None:
        self.world = world
        self.process = process = Process(name)
        process.port, process.world = world.port(process), world
        self.jobs = JobStore(process.port)
        self.controllers = controller_manager(settings_of(folder, LEASE_SECONDS), process)
        world.spawn(process, self._reconciles)

    async def _reconciles(self) -> None:
        me = f"{self.process.name} since {self.world.loop.now}"
        while True:
            try:
                if await is_leader(self.process.port, me):
                    await self.controllers.reconcile()
            except (HeadraceError, RedisError) as error:
                self.world.note(self.process.name, f"could not reconcile: {error}")
            await asyncio.sleep(RECONCILE_SECONDS)


class QueueSchedule:
    """One schedule of the queue. The driver calls `advance` and `answered` alternately."""

    def __init__(self, server: Server, plan: QueuePlan, folder: Path, plant: str | None, traced: bool) -> None:
        self.plan = plan
        self.world = QueueWorld(server, plan, folder, plant, traced)
        self.world.ray = SimulatedRay(self.world, settings_of(folder, LEASE_SECONDS))
        self.happened: Counter[str] = Counter()
        self._folder = folder
        self._gateways = dict[str, Gateway]()
        self._calls: Counter[str] = Counter()
        self._deadly = [f for f in plan.faults if f.kind == "gateway_dies_at_call"]
        self._begin()

    # ── the driver's side ────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> list[Command | Packed] | None:
        """Run to the next commands for Redis, and return those; None once the schedule is over. Raises `Violation`."""
        observer = self.world.observer
        return advanced(self.world, lambda: f"{observer.statuses}, at rest {observer.at_rest}")

    def answered(self, raw: list[Any]) -> None:
        """Continue with Redis' answers. Raises `Violation`."""
        self.world.answered(raw)

    def clear(self) -> list[Command]:
        """Remove the schedule's files; returns the commands that remove its keys."""
        for process in (*self.world.ray.all_living(), *(g.process for g in self._gateways.values())):
            self.world.loop.kill(process)
        self.world.loop.end()
        for job_id in self.world.job_ids:
            shutil.rmtree(self._folder / "jobs" / job_id, ignore_errors=True)
        shared = [self.world.own(key) for key in (keys.JOBS, keys.GATEWAY)]
        return [("EVAL", _CLEAR, 0, f"headrace:{{ftjob-queue-{self.plan.seed}-*"), ("DEL", *shared)]

    # ── the world's ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        world = self.world
        world.before_call = self._before_call
        for number in range(self.plan.gateways):
            self._gateway_begins(f"gateway-{number}")
        for number, job in enumerate(self.plan.jobs):
            world.loop.after(job.submitted, self._ask, self._submission(number))
        for fault in self.plan.faults:
            if fault.kind != "gateway_dies_at_call":
                world.loop.after(fault.at, self._inject, fault)
        world.loop.after(NODES_COME_AT, world.ray.add_nodes, self.plan.more_nodes)
        world.loop.after(FAULT_SECONDS, self._no_more_faults)
        world.loop.after(1.0, self._check_end)

    def _gateway_begins(self, name: str) -> None:
        self.world.note(name, "is started")
        self._gateways[name] = Gateway(self.world, name, self._folder)

    def _check_end(self) -> None:
        observer = self.world.observer
        for name, gateway in self._gateways.items():
            if gateway.process.dead:
                self._gateway_begins(name)
        over = all(status in ENDED for status in observer.statuses) and all(observer.at_rest)
        if over and not self.world.ray.all_living():
            self.world.done = True
            self.world.loop.interrupt()
        self.world.loop.after(self.world.random.uniform(0.5, 3.0), self._check_end)

    def _no_more_faults(self) -> None:
        self.world.network, self._deadly = QUIET, []
        self.world.ray.dies_starting = set()

    def _before_call(self, process: Process, name: str) -> str | None:
        self._calls[process.name] += 1
        for fault in self._deadly:
            if fault.who == process.name and fault.at == self._calls[process.name]:
                self.happened[fault.kind] += 1
                return fault.detail
        return None

    # ── users ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, request: Request) -> None:
        """Send a request to a gateway; repeats it to another one if that dies, or none lives, before the answer."""
        living = [gateway for gateway in self._gateways.values() if not gateway.process.dead]
        if not living:
            self.world.loop.after(RETRY_SECONDS, self._ask, request)
            return
        gateway, answered = self.world.random.choice(living), list[bool]()

        async def carried_out() -> None:
            try:
                await request(gateway)
            except (InvalidState, NotFound):  # it has ended, or has the status already; or its creation is on its way
                pass
            except RedisError:
                return
            answered.append(True)

        self.world.spawn(gateway.process, carried_out)
        self.world.loop.after(20 * RETRY_SECONDS, lambda: None if answered else self._ask(request))

    def _submission(self, number: int) -> Request:
        created_at = EPOCH + self.plan.jobs[number].submitted

        async def submit(gateway: Gateway) -> None:
            job_id = self.world.job_ids[number]
            await gateway.jobs.create(self._job(number, created_at))
            await gateway.jobs.move(job_id, "queued")
            await gateway.controllers.ensure(await gateway.jobs.get(job_id))

        return submit

    def _job(self, number: int, created_at: float) -> Job:
        settings = Hyperparameters.model_validate(
            {"n_steps": 1, "rollout_workers": self.plan.jobs[number].processes - 1, "engine": "transformers"}
        )
        return Job(
            id=self.world.job_ids[number],
            created_at=created_at,
            model="none",
            model_path="none",
            training_file="none",
            hyperparameters=settings.model_dump(),
            rows=ROWS,
            total_steps=1,
        )

    def _move(self, number: int, status: Any) -> Request:
        async def move(gateway: Gateway) -> None:
            job_id = self.world.job_ids[number]
            await gateway.jobs.move(job_id, status)
            await gateway.controllers.ensure(await gateway.jobs.get(job_id))

        return move

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _inject(self, fault: Fault) -> None:
        self.world.note("fault", str(fault))
        if getattr(self, f"_{fault.kind}")(fault) is not False:
            self.happened[fault.kind] += 1

    def _gateway_dies(self, fault: Fault) -> None:
        self.world.kill(self._gateways[fault.who].process, "SIGKILL")

    def _gateway_dies_starting(self, fault: Fault) -> None:
        self.world.ray.dies_starting.add(fault.who)

    def _gateway_stops(self, fault: Fault) -> None:
        self._stop(self._gateways[fault.who].process, fault.seconds)

    def _controller_dies(self, fault: Fault) -> bool:
        found = self.world.ray.actors(int(fault.who))
        for actor in found:
            self.world.kill(actor.process, "SIGKILL")
        return bool(found)

    def _controller_stops(self, fault: Fault) -> bool:
        found = self.world.ray.actors(int(fault.who))
        for actor in found:
            self._stop(actor.process, fault.seconds)
        return bool(found)

    def _stop(self, process: Process, seconds: float) -> None:
        self.world.loop.stop_process(process)
        self.world.loop.after(seconds, self.world.loop.go_on, process)

    def _redis_away(self, fault: Fault) -> None:
        self.world.redis_back = self.world.loop.now + fault.seconds

    def _ray_away(self, fault: Fault) -> None:
        self.world.ray.back = self.world.loop.now + fault.seconds

    def _cancel(self, fault: Fault) -> None:
        self.world.observer.cancelled.add(int(fault.who))
        self._ask(self._move(int(fault.who), "cancelled"))

    def _pause(self, fault: Fault) -> None:
        self._ask(self._move(int(fault.who), "paused"))
        self.world.loop.after(fault.seconds, self._resume, int(fault.who))

    def _resume(self, number: int) -> None:
        """Resume the job, repeatedly until it has ended, in case a request is lost."""
        if self.world.observer.statuses[number] == "paused":
            self._ask(self._move(number, "queued"))
        if self.world.observer.statuses[number] not in ENDED:
            self.world.loop.after(25.0, self._resume, number)
