"""The learner of a simulated world: the real worker with simulated training, in which a step computes a hash.

The hash is chained over everything that a step reads, so that two learners with the same weights have read the same
groups in the same order. A checkpoint's files and manifest are real files in memory; snapshots are kept by the world.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.atomic_write import MANIFEST, PARTIAL
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.trajectory import Group
from headrace_lab.virtual.simulated_training import step_result
from headrace_learner.algorithms.token_selection import AgeCount
from headrace_learner.checkpoints import checkpoint
from headrace_learner.checkpoints.checkpoint import NewestCheckpoint
from headrace_learner.checkpoints.memory_snapshot import Restored
from headrace_learner.distributed.process_group import ProcessGroup, SingleProcess
from headrace_learner.distributed.rank_commands import Save
from headrace_learner.ports import LearnerPorts
from headrace_learner.training.trainer import StepResult
from headrace_learner.worker import LearnerWorker
from headrace_simulation.invariants import age_counts, chain
from headrace_simulation.virtual_loop import Process
from headrace_simulation.world import HEARTBEAT_SECONDS, ProcessClock, World


class Chain:
    """The trainer. Its state is the hash of everything it was trained on, in order."""

    def __init__(self) -> None:
        self.state = chain("", 0, [], 0)
        self.max_staleness = 0
        self.computed_tokens = 0
        self.ranks = SingleProcess()
        self.policy = SimpleNamespace(
            device="none", parameters=0, write_weights=self.write, write_model=self.write, folder=Path()
        )

    def apply_settings(self, max_staleness: int, learning_rate: float) -> None:
        """Set `max_staleness` for the next steps."""
        self.max_staleness = max_staleness

    def step(self, groups: Sequence[Group], version: int) -> StepResult:
        """Hash the groups into the state."""
        self.computed_tokens += sum(group.sampled_tokens for group in groups)
        self.state = chain(self.state, version, groups, self.max_staleness)
        young, masked = age_counts(groups, version, self.max_staleness)
        return step_result(AgeCount(young, type(young)({self.max_staleness + 1: masked})))

    def write(self, folder: Path) -> None:
        """Write the state, as weights or as a model."""
        folder.mkdir(exist_ok=True)
        (folder / "w").write_text(self.state)


class SimulatedSnapshots:
    """Snapshots of the learner's state in its node's memory, which outlive it: two generations, each sealed a while
    after it was begun."""

    stalled = 0.0

    def __init__(self, world: World, process: Process, trainer: Chain) -> None:
        self._world, self._process, self._trainer = world, process, trainer

    def begin(self, version: int) -> None:
        """Begin a snapshot of a settled step."""
        self._world.loop.after(0.02, self._seal, version, self._trainer.state)

    def _seal(self, version: int, state: str) -> None:
        if not self._process.dead:
            self._world.snapshots = [*self._world.snapshots[-1:], (version, state)]

    def restore(self, least: int, most: int) -> Restored:
        """Restore the newest version in [least, most]; newer snapshots are discarded."""
        valid = [(version, state) for version, state in self._world.snapshots if version <= most]
        self._world.snapshots, usable = valid, [snapshot for snapshot in valid if snapshot[0] >= least]
        if not usable:
            return Restored(None, ())
        version, self._trainer.state = max(usable)
        return Restored(version, ())

    def close(self) -> None:
        """Nothing to do: the last snapshot seals itself."""


class SimulatedCoordinator:
    """A coordinator of one rank. Training and saving take time, during which the learner may die."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self.ranks: ProcessGroup = SingleProcess()

    async def connect(self) -> None: ...

    async def send_heartbeat(self) -> None: ...

    async def finish(self) -> None: ...

    async def close(self) -> None: ...

    async def run_on_all(self, command: Any, work: Callable[[], Any]) -> Any:
        """Run `work` in the middle of a simulated duration; a checkpoint is written in parts."""
        seconds = self._world.plan.job.train_seconds / 2
        await self._let_time_pass(seconds)
        if isinstance(command, Save):
            return await self._save(command.version, work)
        done = work()
        await self._let_time_pass(seconds)
        return done

    async def run_local(self, work: Callable[[], Any]) -> Any:
        """Run `work` in this process only."""
        await self._let_time_pass(0.001)
        return work()

    async def _let_time_pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._process.check()

    async def _save(self, version: int, work: Callable[[], Any]) -> Any:
        early = self._world.plant == "checkpoint_before_manifest"
        path = work()
        if early:
            self._world.loop.after(1.0, lambda: None if self._process.dead else complete(path))
        for part in () if early else (write_manifest, complete):
            await self._let_time_pass(0.05)
            part(path)
        return path


def save_state(trainer: Chain, output: Path, version: int) -> Path:
    """Write the first part of a checkpoint, its state, to an incomplete folder. Returns the folder's final path."""
    final = output / "checkpoints" / f"step-{version:08d}"
    partial = final.with_name(final.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "state").write_text(f"{version} {trainer.state}")
    return final


def write_manifest(final: Path) -> None:
    """Write the second part, the manifest."""
    partial = final.with_name(final.name + PARTIAL)
    state, version = (partial / "state").read_bytes(), int(final.name.removeprefix("step-"))
    files = {"state": [len(state), zlib.crc32(state)]}
    (partial / MANIFEST).write_text(json.dumps({"version": version, "files": files}))


def complete(final: Path) -> None:
    """Complete a checkpoint: rename the folder to its final path."""
    partial = final.with_name(final.name + PARTIAL)
    if not (partial / MANIFEST).exists():
        write_manifest(final)
    if final.exists():
        for file in final.iterdir():
            file.unlink()
        final.rmdir()
    partial.rename(final)


def load_state(trainer: Chain, path: Path) -> None:
    """Load what `save_state` wrote."""
    trainer.state = (path / "state").read_text().split()[1]


class WrittenInParts:
    """A `CheckpointStore` (`headrace_learner.ports`) whose manifests are written a while after the states, by
    `SimulatedCoordinator`. The search for the newest checkpoint is real."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def newest(self, ledger: int) -> NewestCheckpoint:
        return checkpoint.newest(self._output, ledger)

    def save(self, trainer: Any, version: int) -> Path:
        return save_state(trainer, self._output, version)

    def load(self, trainer: Any, path: Path) -> None:
        load_state(trainer, path)


class SimulatedLearner:
    """The real learner with a `Chain` as its trainer, in a process of the world. The observer checks what it
    replayed."""

    def __init__(self, config: WorkerConfig, world: World, process: Process) -> None:
        self._world, self._trainer = world, Chain()
        clock, snapshots = ProcessClock(process), SimulatedSnapshots(world, process, self._trainer)
        ports = LearnerPorts(
            job=JobRecord.on(process.port, config.job_id, clock),
            weights=WeightStore(Path(config.weights_root), config.job_id),
            coordinator=SimulatedCoordinator(world, process),
            load=lambda ranks: (cast(Any, self._trainer), cast(Any, snapshots)),
            checkpoints=WrittenInParts(Path(config.output_dir)),
            clock=clock,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
        self._worker = LearnerWorker(config, ports)
        self.run, self.stop = self._worker.run, self._worker.stop

    async def start(self) -> dict[str, Any]:
        facts = await self._worker.start()
        observer = self._world.observer
        if not observer.closed and self._worker.term.number == observer.counts.get("term"):
            observer.replayed(facts["version"], self._trainer.state)
        return facts
