"""The services' own classes in a simulated world, and what is simulated around them.

real       LearnerWorker · RolloutWorker and GroupMaker · JobController and its Supervisors · Ledger, Live, Drains,
           JobStore over a real redis-server · staleness.select · WeightStore and the search for a whole checkpoint,
           on real folders in memory
simulated  training (a hash chained over all that a step reads) · engine and reward · how a checkpoint's state is
           written · Ray: processes are started, asked, told of deaths and killed in the world
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from _books import age_counts, chain
from _loop import PROCESS, Process
from _simulated_engine import DecodeSpeed, SimulatedEngine
from _world import EPOCH, World
from ray.exceptions import RayActorError, RayTaskError
from redis.exceptions import RedisError

from headrace_core import drains
from headrace_core.data import Row
from headrace_core.errors import HeadraceError
from headrace_core.jobs import Job
from headrace_core.settings import Settings
from headrace_core.trajectory import Group
from headrace_core.weights import WeightStore
from headrace_core.workers import WorkerConfig
from headrace_gateway import controller, silence, supervisor
from headrace_gateway.controller import JobController
from headrace_gateway.crew import Crew
from headrace_gateway.partials import remove_partials
from headrace_learner import checkpoint, recovery, room
from headrace_learner import worker as learner
from headrace_learner.contribution import AgeCount
from headrace_learner.orders import Save
from headrace_learner.ranks import Alone
from headrace_learner.snapshot import Restored
from headrace_learner.worker import LearnerWorker
from headrace_rewards.protocol import Outcome, Sample, Score
from headrace_rollout import following
from headrace_rollout import worker as rollout
from headrace_rollout.prompts import Prompt
from headrace_rollout.worker import RolloutWorker

ROWS = 16
MESSAGE_SECONDS = 0.004
"""Of a call between two processes."""
DEATH_NOTICED_SECONDS = 0.5
"""Until Ray tells whoever waits for a dead process."""
PROMPTS = [Prompt(row, np.array([row], np.int32), Row([], {})) for row in range(ROWS)]


_NO_MEASURES = SimpleNamespace(
    ages={}, loss=0.0, entropy=0.0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0, extra={}
)
_NO_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("loss", "grad_norm", "learning_rate", "batch_seconds", "train_seconds"), 0.0),
    "measured": _NO_MEASURES,
}


# ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Chain:
    """The trainer: its state is the hash of everything it was trained on, in order."""

    def __init__(self) -> None:
        self.state = chain("", 0, [], 0)
        self.max_staleness = 0
        self.ranks = Alone()
        self.policy = SimpleNamespace(
            device="none", parameters=0, write_weights=self.write, write_model=self.write, folder=Path()
        )

    def adopt(self, max_staleness: int, learning_rate: float) -> None:
        """Of the next steps."""
        self.max_staleness = max_staleness

    def step(self, groups: Sequence[Group], version: int) -> Any:
        """As far as the worker reads it."""
        self.state = chain(self.state, version, groups, self.max_staleness)
        young, masked = age_counts(groups, version, self.max_staleness)
        counts = AgeCount(young, type(young)({self.max_staleness + 1: masked}))
        return SimpleNamespace(counts=counts, **_NO_FIGURES)

    def write(self, folder: Path) -> None:
        """As weights, and as a model."""
        folder.mkdir(exist_ok=True)
        (folder / "w").write_text(self.state)


class SimulatedSnapshots:
    """The learner's state in its node's memory, which outlives it: two generations, sealed a while after they began."""

    stalled = 0.0

    def __init__(self, world: World, process: Process, trainer: Chain) -> None:
        self._world, self._process, self._trainer = world, process, trainer

    def begin(self, version: int) -> None:
        """Of a settled step."""
        self._world.loop.after(0.02, self._seal, version, self._trainer.state)

    def _seal(self, version: int, state: str) -> None:
        if not self._process.dead:
            self._world.snapshots = [*self._world.snapshots[-1:], (version, state)]

    def restore(self, least: int, most: int) -> Restored:
        """The newest of versions `least` … `most`; newer ones are void."""
        kept = [(version, state) for version, state in self._world.snapshots if version <= most]
        self._world.snapshots, young = kept, [found for found in kept if found[0] >= least]
        if not young:
            return Restored(None, ())
        version, self._trainer.state = max(young)
        return Restored(version, ())

    def close(self) -> None:
        """The last one seals itself."""


class SimulatedLead:
    """Training and saving take time, in which the learner may die."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self.ranks = Alone()

    async def muster(self) -> None: ...

    async def beat(self) -> None: ...

    async def dismiss(self) -> None: ...

    async def close(self) -> None: ...

    async def together(self, order: Any, work: Callable[[], Any]) -> Any:
        """`work` happens in the middle of a while; a checkpoint is written in parts."""
        seconds = self._world.plan.job.train_seconds / 2
        await self._passes(seconds)
        if isinstance(order, Save):
            return await self._save(order.version, work)
        done = work()
        await self._passes(seconds)
        return done

    async def alone(self, work: Callable[[], Any]) -> Any:
        """In this process only."""
        await self._passes(0.001)
        return work()

    async def _passes(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._process.check()

    async def _save(self, version: int, work: Callable[[], Any]) -> Any:
        early = self._world.plant == "checkpoint_before_manifest"
        path = work()
        if early:
            self._world.loop.after(1.0, lambda: self._process.dead or complete(path))
        for part in () if early else (write_manifest, complete):
            await self._passes(0.05)
            part(path)
        return path


def save_state(trainer: Chain, output: Path, version: int) -> Path:
    """The first part of a checkpoint: its state, in a folder that is not complete yet. Returns its name when it is."""
    final = output / "checkpoints" / f"step-{version:08d}"
    partial = final.with_name(final.name + checkpoint.PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "state").write_text(f"{version} {trainer.state}")
    return final


def write_manifest(final: Path) -> None:
    """The second part."""
    partial = final.with_name(final.name + checkpoint.PARTIAL)
    state, version = (partial / "state").read_bytes(), int(final.name.removeprefix("step-"))
    files = {"state": [len(state), zlib.crc32(state)]}
    (partial / checkpoint.MANIFEST).write_text(json.dumps({"version": version, "files": files}))


def complete(final: Path) -> None:
    """The last part."""
    partial = final.with_name(final.name + checkpoint.PARTIAL)
    if not (partial / checkpoint.MANIFEST).exists():
        write_manifest(final)
    if final.exists():
        for file in final.iterdir():
            file.unlink()
        final.rmdir()
    partial.rename(final)


def load_state(trainer: Chain, path: Path) -> None:
    """What `save_state` wrote."""
    trainer.state = (path / "state").read_text().split()[1]


class SimulatedLearner(LearnerWorker):
    """The real one's order of work around a chain."""

    def __init__(self, config: WorkerConfig, world: World, process: Process) -> None:
        super().__init__(config)
        self._world, self._process = world, process

    def _load(self) -> None:
        trainer = Chain()
        self._trainer = cast(Any, trainer)
        self._snapshots = cast(Any, SimulatedSnapshots(self._world, self._process, trainer))

    async def start(self) -> dict[str, Any]:
        facts = await super().start()
        if not self._world.observer.closed and self._current():
            self._world.observer.replayed(self._version, cast(Any, self._trainer).state)
        return facts

    def _current(self) -> bool:
        return self._term.number == self._world.observer.books.get("term")


# ── rollout worker ───────────────────────────────────────────────────────────────────────────────────────────────────


class InstantReward:
    """Differs between completions, but for every fourth group."""

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Score(_value(sample)) for sample in samples]

    async def close(self) -> None: ...


def _value(sample: Sample) -> float:
    if sample.draw is None or sample.draw.group % 4 == 3:
        return 0.5
    return (sample.draw.completion % 2) * 1.0


class Engine(SimulatedEngine):
    """It takes a while to load."""

    async def start(self) -> None:
        await asyncio.sleep(0.3)


def _engine(*_: Any) -> Engine:
    """Of the worker that asks."""
    job, seed = _here().world.plan.job, _here().world.plan.seed
    rng = np.random.default_rng([seed, *_here().name.encode()])
    tails = np.minimum(job.longest, rng.pareto(1.2, (ROWS, job.group_size + 2)) + 1)
    return Engine(DecodeSpeed(job.token_seconds, 0.0, 0.05), tails.astype(np.int64))


# ── Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Handle:
    """A worker's process as its supervisor has it (`headrace_gateway.placement.Process`)."""

    def __init__(self, cluster: Cluster, config: WorkerConfig) -> None:
        self._cluster, self._world = cluster, cluster.world
        self.process = cluster.process(config.worker)
        self._worker: Any = None
        self._config = config
        self._asked: list[asyncio.Future[Any]] = []

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
        """Tell whoever waits."""
        for asked in self._asked:
            self._world.loop.after(DEATH_NOTICED_SECONDS, _fail, asked, RayActorError())

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self._cluster.check()
        if self.process.dead:
            raise RayActorError
        asked = self._world.loop.create_future()
        self._asked.append(asked)
        self._world.loop.after(MESSAGE_SECONDS, self._begin, asked, method, arguments)
        return await asked

    def _begin(self, asked: asyncio.Future[Any], method: str, arguments: Sequence[Any]) -> None:
        if not self.process.dead:
            self._world.spawn(self.process, lambda: self._answer(asked, method, arguments))

    async def _answer(self, asked: asyncio.Future[Any], method: str, arguments: Sequence[Any]) -> None:
        try:
            if self._worker is None:
                self._worker = self._made()
            found = None if method == "ping" else await getattr(self._worker, method)(*arguments)
        except (HeadraceError, RedisError) as error:
            self._world.note(self.process.name, f"{method} failed: {type(error).__name__}: {error}")
            self._world.loop.after(MESSAGE_SECONDS, _fail, asked, _as_ray(error))
        else:
            self._world.loop.after(MESSAGE_SECONDS, _give, asked, found)

    def _made(self) -> Any:
        if self._config.worker == "learner":
            return SimulatedLearner(self._config, self._world, self.process)
        return RolloutWorker(self._config)


def _as_ray(error: Exception) -> RayTaskError:
    return RayTaskError("simulated", "", error, proctitle="simulated", pid=0, ip="0.0.0.0")


def _fail(asked: asyncio.Future[Any], error: Exception) -> None:
    if not asked.done():
        asked.set_exception(error)


def _give(asked: asyncio.Future[Any], found: Any) -> None:
    if not asked.done():
        asked.set_result(found)


class SimulatedCrew(Crew):
    """The real one, whose place is the world."""

    def __init__(self, cluster: Cluster, *given: Any) -> None:
        super().__init__(*given)
        self._cluster = cluster

    async def place(self, job: Job, again: bool = False) -> None:
        names = ["learner", *(f"rollout-{i}" for i in range(job.hyperparameters["rollout_workers"]))]
        for name in names:
            self._supervise(self._config(job, name, 1), self._cluster.launch)

    async def hold(self) -> None:
        await asyncio.Event().wait()


class SimulatedController(JobController):
    """The real one, whose workers are processes of the world; Redis has memory enough."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        super().__init__(settings, "simulated", cluster.world.job_id)
        self._cluster = cluster
        given = (settings, "simulated", self._jobs, self._mending, self._weights_root, self._snapshots_root)
        self._crew = SimulatedCrew(cluster, *given)
        self._memory = cast(Any, SimpleNamespace(keep_allotted=asyncio.Event().wait))

    async def live(self) -> None:
        """Its whole life."""
        await self._live()

    async def _fail(self, error: Exception) -> Any:
        self._cluster.world.failure = f"{type(error).__name__}: {error}"
        return await super()._fail(error)


class Cluster:
    """The processes of one job, while a controller of it lives."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self._settings = world, settings
        self.controller: Process | None = None
        self.handles: list[Handle] = []
        world.on_death.append(self._heard)

    def process(self, name: str) -> Process:
        """A new one."""
        made = Process(name)
        made.port, made.world = self.world.port(made), self.world
        made.offset = self.world.offsets.get(name, 0.0)
        return made

    def check(self) -> None:
        """Whoever asks the cluster for something must live."""
        if (process := PROCESS.get()) is not None:
            process.check()

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
        await SimulatedController(self, self._settings).live()
        self.world.kill(process, "its work is done")

    def living(self, name: str) -> list[Process]:
        """Processes of this name."""
        found = [h.process for h in self.handles if h.process.name == name and not h.process.dead]
        if name == "controller" and self.controller is not None and not self.controller.dead:
            found.append(self.controller)
        return found

    def all_living(self) -> list[Process]:
        """Of whatever name."""
        return [p for p in (self.controller, *(h.process for h in self.handles)) if p is not None and not p.dead]

    def _heard(self, process: Process) -> None:
        for handle in self.handles:
            if handle.process is process:
                handle.died()
        if process is self.controller:  # an actor's processes end with it
            for handle in self.handles:
                if not handle.process.dead:
                    self.world.loop.after(0.2, self.world.kill, handle.process, "its controller is dead")
        self.handles = [h for h in self.handles if not h.process.dead]


# ── what the services' modules see ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Clocks:
    """`time`, for the modules that read a clock."""

    def time(self) -> float:
        """The process's wall clock."""
        process = PROCESS.get()
        return EPOCH + self.monotonic() + (0.0 if process is None else process.offset)

    def monotonic(self) -> float:
        """The world's time."""
        return asyncio.get_running_loop().time()


def _here() -> Process:
    process = PROCESS.get()
    assert process is not None
    return process


def _connect(url: str, *_: Any, **__: Any) -> Any:
    return _here().port


class _Weights(WeightStore):
    """Out of the reach of a controller that is dead."""

    def remove(self) -> None:
        if not _here().dead:
            super().remove()


def _remove_snapshots(root: Path, job_id: str) -> None:
    if not _here().dead:
        _here().world.snapshots = []


def _remove_partials(output: Path) -> None:
    if not _here().dead:
        remove_partials(output)


async def _no_sandbox() -> Any:
    return SimpleNamespace(level="none")


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Within it, the services' modules find the world where they look for clocks, Redis, files and models."""
    clocks = Clocks()
    files = SimpleNamespace(newest=checkpoint.newest, save=save_state, load=load_state, Found=checkpoint.Found)
    text = SimpleNamespace(text=lambda ids: "")
    changes: list[tuple[Any, str, Any]] = [
        *((module, "time", clocks) for module in (learner, room, rollout, following, controller, supervisor, drains)),
        *((module, "connect", _connect) for module in (learner, rollout, controller)),
        (silence.Stillness.__init__, "__defaults__", (clocks.monotonic,)),
        (learner, "Lead", lambda *_: SimulatedLead(_here().world, _here())),
        (learner, "checkpoint", files),
        (recovery, "checkpoint", files),
        (rollout, "create", _engine),
        (rollout, "build", lambda *_: InstantReward()),
        (rollout, "Tokenizer", lambda *_: text),
        (rollout, "read_prompts", lambda *_: PROMPTS),
        (rollout, "Measurer", lambda *_, **__: None),
        (rollout, "assess", _no_sandbox),
        (controller, "WeightStore", _Weights),
        (controller, "snapshots", SimpleNamespace(remove=_remove_snapshots)),
        (controller, "remove_partials", _remove_partials),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
