"""One schedule: a job in a world of its own, the faults of its plan, and the check that it ends properly.

plan ──► faults at their times ──► processes die or stop, Redis becomes unreachable, the user changes their mind …
                                        │
         every five seconds the gateway starts a controller if there is none
                                        │
ended ◄── the job has ended and no process is left, within `FINISHED_WITHIN` of the last fault, else `Violation`
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidState, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.redis_access import keys
from headrace_core.redis_access.durability import wait_until_durable
from headrace_core.types.job import ENDED, Job
from headrace_simulation.fake_ray import Cluster
from headrace_simulation.fault_plan import FAULT_SECONDS, FINISHED_WITHIN, ROWS, Fault, Network, Plan
from headrace_simulation.invariants import Violation
from headrace_simulation.redis_port import Command, Packed, Server
from headrace_simulation.virtual_loop import Process, Stalled
from headrace_simulation.world import ProcessClock, World

Action = Callable[[Process], Coroutine[Any, Any, Any]]
RECONCILE_SECONDS = 5.0
QUIET = Network(slow=0.0, slow_seconds=0.0, lost=0.0, ghosts=0.0)
_DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('DUMP', key)
end
return found
"""
_RESTORE = """
redis.replicate_commands()
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end
for i = 2, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end
"""


class Schedule:
    """One schedule. The driver calls `advance` and `answered` alternately."""

    def __init__(self, server: Server, plan: Plan, folder: Path, plant: str | None, traced: bool) -> None:
        self.plan = plan
        self.world = World(server, plan, folder, plant, traced)
        self.happened: Counter[str] = Counter()
        """Faults that took place, by kind."""
        self._cluster = Cluster(self.world, settings_of(folder, plan.job.lease_seconds))
        self._calls: Counter[str] = Counter()
        self._deadly = [f for f in plan.faults if f.kind == "dies_at_call"]
        self._deadly_evaluating = [f for f in plan.faults if f.kind == "dies_evaluating"]
        self._evaluated = 0
        """Number of completions begun for evaluations."""
        self._damaged = False
        self._pauses_until = 0.0
        self._unanswered = list[tuple[Process, Action, Callable[[], None] | None]]()
        """The user's requests that are not answered yet."""
        self._begin()

    # ── the driver's side ────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> list[Command | Packed] | None:
        """Run to the next commands for Redis, and return those; None once the schedule is over. Raises `Violation`."""
        observer, within = self.world.observer, self.plan.job.finished_within
        return advanced(self.world, lambda: f"{observer.status}, {observer.counts}", within)

    def answered(self, raw: list[Any]) -> None:
        """Continue with Redis' answers. Raises `Violation`."""
        self.world.answered(raw)

    def clear(self) -> list[Command]:
        """Remove the schedule's files; returns the commands that remove its keys."""
        for process in self._cluster.all_living():
            self.world.loop.kill(process)
        self.world.loop.end()
        shutil.rmtree(self.world.output, ignore_errors=True)
        shutil.rmtree(self.world.weights, ignore_errors=True)
        return [("EVAL", _RESTORE, 0, self.world.keys.prefix + "*"), ("ZREM", keys.JOBS, self.world.job_id)]

    # ── the world's ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        self.world.before_call, self.world.before_greedy = self._before_call, self._before_greedy
        self._submit()
        for fault in self.plan.faults:
            if fault.kind not in ("dies_at_call", "dies_evaluating"):
                self.world.loop.after(fault.at, self._inject, fault)
        self.world.loop.after(FAULT_SECONDS, self._no_more_faults)
        self.world.loop.after(1.0, self._check_end)
        self.world.loop.after(RECONCILE_SECONDS, self._reconcile)

    def _submit(self) -> None:
        self._user(lambda process: JobStore(process.port).create(self._job()), then=self._cluster.control)

    def _job(self) -> Job:
        job = self.plan.job
        hyperparameters = Hyperparameters.model_validate(
            {
                "batch_size": job.batch_size,
                "group_size": job.group_size,
                "max_staleness": job.max_staleness,
                "n_steps": job.steps,
                "late": job.late,
                "checkpoint_interval": job.checkpoint_interval,
                "filter_groups": job.filter_groups,
                "filter_limit": 1,
                "max_tokens": 64,
                "max_context": 128,
                "max_running": max(job.max_running, job.group_size),
                "rollout_workers": job.workers,
                "engine": "transformers",
                "keep_rollouts": 0,
                "reward_recheck": 0.0,
                "eval_samples": job.eval_samples,
                "eval_interval": job.eval_interval,
            }
        )
        return Job(
            id=self.world.job_id,
            created_at=0.0,
            model="none",
            model_path="none",
            training_file="none",
            validation_file=None if job.eval_samples is None else "none",
            grader={"type": "string_check", "name": "none", "input": "", "reference": "", "operation": "eq"},
            hyperparameters=hyperparameters.model_dump(),
            rows=ROWS,
            total_steps=job.steps,
            status="queued",
        )

    def _check_end(self) -> None:
        observer = self.world.observer
        if observer.status in ENDED and observer.at_rest and not self._cluster.all_living():
            if self.plan.job.refused_row is not None and observer.counts["generation_failed"]:
                self.happened["row_refused"] += 1
            self.world.done = True
            self.world.loop.interrupt()
        self.world.loop.after(1.0, self._check_end)

    def _reconcile(self) -> None:
        observer = self.world.observer  # `RayControllerManager.reconcile`, with the job as the observer saw it last
        if observer.status and not observer.at_rest:
            self._cluster.control()
        if observer.status == "paused" and self.world.loop.now >= self._pauses_until:
            self.happened["resumed"] += 1
            self._move("queued", self._cluster.control)
        self.world.loop.after(RECONCILE_SECONDS, self._reconcile)

    def _no_more_faults(self) -> None:
        self.world.network, self._deadly, self._deadly_evaluating = QUIET, [], []

    def _before_call(self, process: Process, name: str) -> str | None:
        self._calls[process.name] += 1
        for fault in self._deadly:
            if fault.who == process.name and fault.at == self._calls[process.name]:
                self.happened[fault.kind] += 1
                return fault.detail
        return None

    def _before_greedy(self) -> None:
        self._evaluated += 1
        for fault in self._deadly_evaluating:
            if fault.at == self._evaluated:
                self.world.loop.after(0.0, self._inject, fault)

    def _user(self, action: Action, then: Callable[[], None] | None = None) -> None:
        """An action of the user through a gateway, which answers when its effect is durable."""
        process = self._cluster.process("user")
        asked = (process, action, then)
        self._unanswered.append(asked)

        async def act() -> None:
            await ask()
            await wait_until_durable(process.port)
            self._unanswered.remove(asked)

        async def ask() -> None:
            known, epoch = bool(self.world.observer.status), self.world.epoch
            try:
                await action(process)
            except InvalidState:  # the job has ended, or has another status by now
                return
            except NotFound:  # its creation was still on its way, or lost with the power
                if known and epoch == self.world.epoch:
                    raise
                return
            if then is not None:
                then()

        self.world.spawn(process, act)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _inject(self, fault: Fault) -> None:
        if self.world.observer.status in ENDED:
            return
        self.world.note("fault", str(fault))
        if getattr(self, f"_{fault.kind}")(fault) is not False:
            self.happened[fault.kind] += 1

    def _dies(self, fault: Fault) -> bool:
        found = self._cluster.living(fault.who)
        for process in found:
            self.world.kill(process, "SIGKILL")
        return bool(found)

    _dies_evaluating = _dies

    def _stops(self, fault: Fault) -> bool:
        found = self._cluster.living(fault.who)
        for process in found:
            self.world.loop.stop_process(process)
            self.world.loop.after(fault.seconds, self.world.loop.go_on, process)
        return bool(found)

    def _redis_away(self, fault: Fault) -> None:
        self.world.redis_back = self.world.loop.now + fault.seconds

    def _redis_clock(self, fault: Fault) -> None:
        self.world.clock_offset += float(fault.detail)

    def _clock(self, fault: Fault) -> None:
        self.world.offsets[fault.who] = self.world.offsets.get(fault.who, 0.0) + float(fault.detail)
        for process in self._cluster.living(fault.who):
            process.offset += float(fault.detail)

    def _checkpoint_damaged(self, fault: Fault) -> bool:
        """Damage the newest checkpoint; only one per schedule, because the job relies on one of two."""
        whole = self.world.complete_checkpoints()
        if not whole or self._damaged:
            return False
        self._damaged = True
        state = self.world.output / "checkpoints" / f"step-{whole[-1]:08d}" / "state"
        state.write_bytes(state.read_bytes()[:-3])
        return self._dies(fault)

    def _weights_lost(self, fault: Fault) -> bool:
        """Lose the memory of the learner's machine: weights and snapshots."""
        shutil.rmtree(self.world.weights, ignore_errors=True)
        self.world.snapshots = []
        self.world.observer.weights_lost = True
        return self._dies(fault)

    def _power_loss(self, fault: Fault) -> None:
        """A power loss of the machine: all processes die, and Redis loses the writes of the last moment."""
        kept: list[Any] = []
        seen = self.world.observer.snapshot()
        self.world.losing = True
        self.world.ask([("EVAL", _DUMP, 0, self.world.keys.prefix + "*")], kept.extend)
        self.world.loop.after(fault.seconds, self._power_returns, kept, seen)

    def _power_returns(self, kept: list[Any], seen: Any) -> None:
        world = self.world
        world.epoch += 1
        world.losing = False
        for process in self._cluster.all_living():
            world.kill(process, "power loss")
        shutil.rmtree(world.weights, ignore_errors=True)
        world.snapshots = []
        world.note("redis", "starts without the last moment")
        world.ask([("EVAL", _RESTORE, 0, world.keys.prefix + "*", *kept[0])], lambda _: self._redis_is_back(seen))

    def _redis_is_back(self, seen: Any) -> None:
        self.world.observer.restore(seen)
        asked, self._unanswered = self._unanswered, []
        for process, action, then in asked:  # users without an answer repeat their requests
            self.world.loop.kill(process)
            self._user(action, then)

    def _max_staleness(self, fault: Fault) -> None:
        self._change(fault.kind, int(fault.detail))

    def _group_size(self, fault: Fault) -> None:
        self._change(fault.kind, int(fault.detail))

    def _change(self, name: str, value: int) -> None:
        async def change(process: Process) -> None:
            settings = Hyperparameters.model_validate(self._job().hyperparameters)
            live = SettingsLog(process.port, self.world.job_id, settings)
            while True:
                await live.refresh()
                if await live.change({name: value}, "user") is not None:
                    return

        self._user(change)

    def _drain(self, fault: Fault) -> None:
        async def drain(process: Process) -> None:
            drains = WorkerDrains(process.port, self.world.job_id, ProcessClock(process))
            await drains.request(fault.who, 2.0)
            await wait_until_durable(process.port)
            await asyncio.sleep(fault.seconds)
            await drains.release(fault.who)

        self._user(drain)

    def _pause(self, fault: Fault) -> None:
        """Pause the job; `_reconcile` resumes it after a while."""
        self._pauses_until = self.world.loop.now + fault.seconds
        self._move("paused")

    def _cancel(self, fault: Fault) -> None:
        self._move("cancelled", self._cluster.control)

    def _move(self, status: Any, then: Callable[[], None] | None = None) -> None:
        self._user(lambda process: JobStore(process.port).move(self.world.job_id, status), then)


@cache
def settings_of(folder: Path, lease_seconds: float) -> Settings:
    """The service's settings. Cached, because reading them (and the environment) takes a tenth of a schedule's time."""
    return Settings(
        data_dir=folder,
        weights_dir=folder / "weights",
        lease_seconds=lease_seconds,
        max_restarts=3,
        restart_window=10.0,
        watchdog_seconds=8.0,
        start_timeout=60.0,
        stall_timeout=60.0,
    )


class ToDrive(Protocol):
    """A schedule of any world."""

    def advance(self) -> list[Command | Packed] | None:
        """Run to the next question to Redis; None once it is over. Raises `Violation`."""
        ...

    def answered(self, raw: list[Any]) -> None:
        """Continue with Redis' answers. Raises `Violation`."""
        ...

    def clear(self) -> list[Command]:
        """Remove the schedule's files; returns the commands that remove its keys."""
        ...


Driven = TypeVar("Driven", bound=ToDrive)


def advanced(world: World, state: Callable[[], str], within: float = FINISHED_WITHIN) -> list[Command | Packed] | None:
    """Run a world to its next commands for Redis, and return those; None once its schedule is over. Raises `Violation`,
    which shows the `state`, if the schedule does not end `within` so many seconds of its last fault."""
    try:
        while world.loop.pump(FAULT_SECONDS + within):
            if world.broken is not None:
                raise world.broken
            if world.done:
                world.observer.ended()
                return None
            if world.wanted is not None:
                return world.commands()
    except Stalled as stalled:
        raise Violation(f"nothing can happen any more: {stalled}") from stalled
    raise Violation(f"not finished {within:.0f} s after the last fault: {state()}")


def drive(server: Server, schedules: Iterator[Driven], at_once: int) -> Generator[tuple[Driven, BaseException | None]]:
    """Run schedules, `at_once` at a time, which share round trips. Yields each as it ends, with its violation."""
    active: list[Driven] = []
    try:
        yield from _driven(server, schedules, at_once, active)
    finally:
        for schedule in active:
            server.send(schedule.clear())


def _driven(
    server: Server, schedules: Iterator[Driven], at_once: int, active: list[Driven]
) -> Iterator[tuple[Driven, BaseException | None]]:
    while True:
        active += [s for _, s in zip(range(at_once - len(active)), schedules, strict=False)]
        if not active:
            return
        asked = list[tuple[Driven, list[Command | Packed]]]()
        over = list[tuple[Driven, BaseException | None]]()
        for schedule in active:
            try:
                commands = schedule.advance()
            except Exception as error:
                over.append((schedule, error))
            else:
                if commands is None:
                    over.append((schedule, None))
                else:
                    asked.append((schedule, commands))
        answers = server.send([c for _, commands in asked for c in commands])
        at = 0
        for schedule, commands in asked:
            try:
                schedule.answered(answers[at : at + len(commands)])
            except Exception as error:
                over.append((schedule, error))
            at += len(commands)
        active[:] = [s for s in active if all(s is not o for o, _ in over)]
        for schedule, _ in over:
            server.send(schedule.clear())
        yield from over
