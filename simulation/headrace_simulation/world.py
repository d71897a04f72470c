"""The world of one schedule: its event loop, network and processes, and the observer of its calls to Redis.

    a process ── call ──► network (delay) ──► arrives: `pump` returns, the driver sends it to Redis ──► observer ──►
    answer
                             │                   ▲   │
                             (delay) │                   │   └ answer lost: the client repeats the call
                             └ Redis unreachable: retried until it is back; after `WAIT_SECONDS` `ConnectionError`
                                                 └ a delayed duplicate arrives, whose caller may be dead

Calls of one process may overtake each other, as on several connections. Each is executed atomically. After each call
that may have changed something, the observer checks the invariants.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from redis.exceptions import ConnectionError as RedisGone

from headrace_core.jobs import history
from headrace_core.ledger.ledger import _SCRIPTS
from headrace_core.redis_access.client import WAIT_SECONDS
from headrace_core.redis_access.keys import JobKeys
from headrace_core.redis_access.scripts import script_source
from headrace_simulation.fault_plan import Network, Plan
from headrace_simulation.invariants import LEDGER_DUMP, Observer
from headrace_simulation.planted_bugs import planted
from headrace_simulation.redis_port import Command, Packed, Port, Server, pack
from headrace_simulation.virtual_loop import Process, SimulatedLoop

SCRIPT_NAMES = {script_source(name): name for name in (*_SCRIPTS, "change", "move", "rest", "drain")}
_NAMES = SCRIPT_NAMES | {history.append_script(): "append"}
READS = {"HGET", "HMGET", "HGETALL", "HVALS", "HLEN", "XREAD", "XRANGE", "LRANGE", "LLEN", "window", "queues"}
EPOCH = 1.8e9
"""Unix time at the start of a world."""
WATCH_SECONDS, HEARTBEAT_SECONDS = 2.0, 4.0
"""Intervals of a controller's checks of its job, and of a worker's heartbeats: twice as long as in the service, because
they are a quarter of all calls, and most change nothing."""


async def forever() -> None:
    """Never returns."""
    await asyncio.Event().wait()


class ProcessClock:
    """The clock of one process, a `headrace_core.clock.Clock`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def time(self) -> float:
        """The process' wall clock, which faults set forward and back."""
        return EPOCH + self.monotonic() + self._process.offset

    def monotonic(self) -> float:
        """The world's time."""
        return float(self._process.world.loop.now)


@dataclass(slots=True)
class Call:
    """A call to Redis."""

    process: Process
    name: str
    commands: Sequence[Command]
    answer: asyncio.Future[list[Any]]
    epoch: int
    copies: int = 0
    """How often it was executed before."""
    then: Callable[[list[Any]], None] | None = None
    """Receives the answer of a call by the world itself, instead of the observer and a process."""


class Wire:
    """The connection of one process to Redis, through the world's network."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def load(self, source: str) -> str:
        return self._world.load(source)

    def call(self, commands: Sequence[Command]) -> Awaitable[list[Any]]:
        return self._world.call(self._process, commands)

    async def durable(self) -> None:
        world = self._world
        self._process.check()
        await asyncio.sleep(world.random.uniform(0.0, 0.3))
        if world.losing:  # a power loss is coming: neither the write nor this process will survive it
            await world.loop.create_future()
        self._process.check()

    async def signalled(self, after: bytes, seconds: float) -> bytes | None:
        world = self._world
        until = world.loop.now + seconds
        while True:
            self._process.check()
            if world.observer.signal not in (after, b""):
                return world.observer.signal
            if world.loop.now >= until:
                return None
            await self._woken(until)

    async def _woken(self, until: float) -> None:
        waiter = self._world.loop.create_future()
        self._world.waiters.append(waiter)
        try:
            async with asyncio.timeout_at(until):
                await waiter
        except TimeoutError:
            return


class World:
    """The world of one schedule. `steps` are a log for reading; with `traced`, it includes every call."""

    def __init__(self, server: Server, plan: Plan, folder: Path, plant: str | None, traced: bool) -> None:
        self.plan, self.folder, self.plant, self.traced = plan, folder, plant, traced
        self.job_id = f"ftjob-{plan.seed}"
        self.keys = JobKeys(self.job_id)
        self.loop = SimulatedLoop()  # type: ignore[abstract]
        self.random = random.Random(f"world {plan.seed}")
        self.network: Network = plan.network
        self.waiters: list[asyncio.Future[None]] = []
        self.wanted: Call | None = None
        self.redis_back = 0.0
        self.clock_offset = 0.0
        """Offset of the Redis server's clock, in seconds."""
        self.observer = Observer(self)
        self.steps: list[tuple[float, str, str]] = []
        self.offsets: dict[str, float] = {}
        """Offsets of the processes' wall clocks, by name, in seconds."""
        self.losing = False
        """Whether writes to Redis are lost from now on, because a power loss is coming."""
        self.epoch = 0
        """Number of power losses so far; calls of an earlier epoch are lost."""
        self.snapshots: list[tuple[int, str]] = []
        """(version, state) of the snapshots in the memory of the learner's node."""
        self.done = False
        self.broken: BaseException | None = None
        self.failure = ""
        """Why the job failed, if it did."""
        self.output, self.weights = folder / "jobs" / self.job_id, folder / "weights" / self.job_id
        self.before_call: Callable[[Process, str], str | None] = lambda process, name: None
        """Called before every call; returns the phase in which its process dies: `sent`, `flight`, `answered` or
        None."""
        self.before_greedy: Callable[[], None] = lambda: None
        """Called before every completion of an evaluation."""
        self.on_death: list[Callable[[Process], None]] = []
        self._server, self._names = server, dict[str, str]()
        keys = self.keys.ledger_scripts
        self.dump = pack(("EVALSHA", server.load(LEDGER_DUMP), len(keys), *keys))
        """Asked of Redis after each call that may have changed something: what the observer sees."""

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def port(self, process: Process) -> Port:
        """A Redis client for the process."""
        return Port(Wire(self, process))  # type: ignore[abstract]

    def spawn(self, process: Process, main: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Start a task of the process. An error that it raises breaks the schedule."""
        task = self.loop.spawn(process, main)
        task.add_done_callback(lambda ended: self._noticed(process, ended))
        return task

    def _noticed(self, process: Process, ended: asyncio.Task[Any]) -> None:
        if not ended.cancelled() and ended.exception() is not None and not process.dead:
            self.broken = ended.exception()
            self.loop.interrupt()

    def complete_checkpoints(self) -> list[int]:
        """Versions of the checkpoints that were completed, oldest first, damaged ones included."""
        folders = (self.output / "checkpoints").glob("step-*")
        return sorted(int(f.name.removeprefix("step-")) for f in folders if "." not in f.name)

    def kill(self, process: Process, why: str) -> None:
        """Kill a process at once, whatever it is doing."""
        if not process.dead:
            self.note(process.name, f"dies: {why}")
            self.loop.kill(process)
            for report in self.on_death:
                report(process)

    def note(self, who: str, what: str) -> None:
        """Add a line to the log of steps."""
        self.steps.append((self.loop.now, who, what))

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, source: str) -> str:
        """Load a script with the world's clock and the planted bug, if there is one; returns its SHA."""
        name, text = _adapted(self.plant, source)
        sha = self._server.load(text)
        self._names[sha] = name
        return sha

    async def call(self, process: Process, commands: Sequence[Command]) -> list[Any]:
        process.check()
        first = commands[0]
        name = self._names[first[1]] if first[0] == "EVALSHA" else str(first[0])
        dies = self.before_call(process, name)
        if dies == "sent":
            self.kill(process, f"before {name} is sent")
            process.check()
        call = Call(process, name, commands, self.loop.create_future(), self.epoch)
        self.loop.after(self._delay(), self._arrive, call)
        if dies == "flight":
            self.kill(process, f"while {name} is on its way")
            process.check()
        raw = await call.answer
        if dies == "answered":
            self.kill(process, f"when {name} was answered")
            process.check()
        return raw

    def _delay(self) -> float:
        chance = self.random.random()
        if chance < self.network.slow:
            return self.random.uniform(0.05, self.network.slow_seconds)
        return 0.0005 + 0.002 * self.random.random()

    def _arrive(self, call: Call) -> None:
        away = self.redis_back - self.loop.now
        if call.epoch != self.epoch:
            return
        if away <= 0:
            self.wanted = call
            self.loop.interrupt()
        elif away < WAIT_SECONDS:
            self.loop.after(away + self.random.uniform(0, 0.5), self._arrive, call)
        else:
            self.loop.after(WAIT_SECONDS, self._refuse, call)

    def ask(self, commands: Sequence[Command], then: Callable[[list[Any]], None]) -> None:
        """Execute commands of the world itself at once, without the network. Call it from a handle of the world."""
        nobody = Process("world")
        self.wanted = Call(nobody, "HGET", commands, self.loop.create_future(), self.epoch, then=then)
        self.loop.interrupt()

    def _refuse(self, call: Call) -> None:
        if not call.answer.done():
            call.answer.set_exception(RedisGone("Redis is away"))

    def commands(self) -> list[Command | Packed]:
        """The commands for Redis: those of the call, and the dump of the ledger's counts after it."""
        call = self.wanted
        assert call is not None
        now = repr(EPOCH + self.loop.now + self.clock_offset)
        asked: list[Command | Packed] = [_at(c, now) if call.name in _TIMED else c for c in call.commands]
        return asked if call.name in READS else [*asked, self.dump]

    def answered(self, raw: list[Any]) -> None:
        """Continue with Redis' answers to `commands`."""
        call, self.wanted = self.wanted, None
        assert call is not None
        if call.then is not None:
            call.then(raw)
            return
        if call.name not in READS:
            *raw, counts = raw
            if isinstance(counts, Exception):
                raise counts
            if self.traced:
                self.note(call.process.name, _shown(call, raw))
            if call.name == "move" and (error := _error_of(call)):
                self.failure = error
                self.note(call.process.name, f"the job fails: {error}")
            before = self.observer.signal
            self.observer.saw(call, raw, counts)
            if self.observer.signal != before:
                self._wake()
        self._reply(call, raw)

    def _reply(self, call: Call, raw: list[Any]) -> None:
        network, call.copies = self.network, call.copies + 1
        chance = self.random.random()
        if call.copies == 1 and chance < network.lost:
            self.note("network", f"the answer to {call.name} of {call.process.name} is lost: it is sent again")
            self.loop.after(self.random.uniform(0.05, 1.0), self._arrive, call)
            return
        if call.copies == 1 and chance > 1 - network.ghosts and call.name not in READS:
            self.note("network", f"a copy of {call.name} of {call.process.name} is stuck")
            self.loop.after(self.random.uniform(0.01, 8.0), self._arrive, call)
        self.loop.after(self._delay(), self._give, call, raw)

    def _give(self, call: Call, raw: list[Any]) -> None:
        if call.epoch == self.epoch and not call.answer.done():
            call.answer.set_result(raw)

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


_CLOCK = ("redis.call('TIME')", "{OURS, 0}")
_BY_OUR_CLOCK = "local OURS = tonumber(ARGV[1]); if OURS then ARGV[1] = '' end\n"
"""Replaces the server's clock in a ledger script by the world's, which is passed as the first argument (else empty)."""
_LIMITS = re.compile(r"(local FAILED_KEPT, ENDED_KEPT, STEPS_KEPT =) .*")
"""The limits on the records that the ledger keeps for reading. The simulation makes them so small that a script which
still needs a deleted record would fail."""
_TIMED = {*SCRIPT_NAMES.values()}


@cache
def _adapted(plant: str | None, source: str) -> tuple[str, str]:
    """(name, source with the world's clock and the planted bug) of a script of the services."""
    name = _NAMES.get(source, "script")
    return name, _BY_OUR_CLOCK + _LIMITS.sub(r"\1 8, 8, 1", planted(plant, name, source).replace(*_CLOCK))


def _at(command: Command, now: str) -> Command:
    """The call of a ledger script with the server's time filled in, if it uses that."""
    first = 3 + int(command[2])
    return (*command[:first], now, *command[first + 1 :]) if command[first] == "" else command


def _shown(call: Call, raw: list[Any]) -> str:
    """The call and its answer for the log, without anything that differs between two runs of a seed."""
    if call.name not in _TIMED:
        return _describe(call) if call.name == "append" else " ".join(str(c[0]) for c in call.commands)
    command = call.commands[0]
    given = command[4 + int(command[2]) :]
    shown = {"claim": given[:1] + given[2:], "commit": given[:4], "settle": given[:5], "change": ()}.get(
        call.name, given[1:2] if call.name in {"move", "rest", "drain"} else given
    )
    again = " (again)" if call.copies else ""
    return f"{call.name}({', '.join(str(x) for x in shown)}) → {_brief(raw[0], call.name)}{again}"


def _error_of(call: Call) -> str:
    """The error (an encoded `JobError`) of a call that moves a job to `failed`; '' for other calls."""
    command = call.commands[0]
    _, status, _, _, error, *_ = command[4 + int(command[2]) :]
    return _text(error) if _text(status) == "failed" else ""


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word


def _describe(call: Call) -> str:
    """The kind of an entry that is appended to a job's history; the rest contains times."""
    command = call.commands[0]
    return f"tells of a {command[3 + int(command[2])]}" + " (again)" * bool(call.copies)


def _brief(raw: Any, name: str) -> str:
    if isinstance(raw, list):
        return f"{len(raw)} groups" if name == "claim" else str([_brief(x, name) for x in raw]).replace("'", "")
    return raw.decode() if isinstance(raw, bytes) else str(raw)
