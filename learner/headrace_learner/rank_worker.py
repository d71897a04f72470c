"""A rank of the learner other than rank 0: it runs the same operations as rank 0, on rank 0's commands.

    rank 0 (`worker.LearnerWorker`)                      another rank
        host a store ──────── JoinGroup ───────────────► join, load the model, hold its shard
        load, train, publish, save  ◄── collectives ──►  the same
        ledger, events, weight files                     none of these: it reads groups, and saves its shards

Invariants: it makes no transition in the ledger; when it fails, it leaves the process group first, so that rank 0 does
not wait for it. A single rank cannot be restarted: all are restarted together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from headrace_core.concurrency import cancel
from headrace_core.errors import HeadraceError
from headrace_core.ledger.ledger import Ledger
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import connect

from .checkpoints import checkpoint
from .checkpoints.memory_snapshot import Snapshots
from .distributed.fsdp import FsdpGroup, connect_store, join_group, own_address
from .distributed.rank_commands import (
    Command,
    CommandStream,
    Finish,
    JoinGroup,
    Load,
    Publish,
    Restore,
    Save,
    Snapshot,
    Train,
    WriteModel,
)
from .distributed.torch_thread import torch_thread
from .ports import load_trainer
from .training.trainer import Trainer

T = TypeVar("T")


class RankWorker:
    """See `headrace_core.protocols.worker.Worker`. It runs commands from `start` on, because rank 0 replays steps
    before its `run`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._redis = connect(config.redis_url, config.redis_wait)
        self._ledger = Ledger(self._redis, config.job_id)
        self._commands = CommandStream(self._redis, config.job_id, config.ranks_start)
        self._thread = torch_thread(config.threads)
        self._ranks: FsdpGroup | None = None
        self._snapshots: Snapshots | None = None
        self._running: asyncio.Task[str] | None = None

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """The constructor that a worker's actor calls."""
        return cls(config)

    async def start(self) -> dict[str, Any]:
        """Join the other ranks and load the model. Raises `TimedOut` if rank 0 does not send the command."""
        began = time.monotonic()
        command = await self._commands.next(self._config.start_timeout)
        if not isinstance(command, JoinGroup):
            raise HeadraceError(f"the first command of a rank is to join the group, not {command}")
        ranks = self._ranks = await self._in_thread(lambda: self._join(command))
        trainer = await self._in_thread(lambda: self._load(ranks))
        self._running = asyncio.create_task(self._run_commands(trainer, ranks), name="run commands")
        return {
            "device": str(trainer.policy.device),
            "rank": f"{ranks.index} of {ranks.size}",
            "threads": self._config.threads,
            "seconds": round(time.monotonic() - began, 2),
        }

    async def run(self) -> str:
        """Returns when rank 0 has finished. Raises `RanksLost`, or `TimedOut` if rank 0 stops sending heartbeats."""
        assert self._running is not None
        return await self._running

    async def stop(self) -> None:
        """Run commands until rank 0 finishes, or `stall_timeout`; then release all resources. Idempotent."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=self._config.stall_timeout)
            await cancel([self._running])
        if self._ranks is not None:
            await asyncio.to_thread(self._ranks.close)
        await asyncio.to_thread(self._thread.shutdown)
        await self._redis.aclose()

    # ── in the thread for torch ──────────────────────────────────────────────────────────────────────────────────────

    def _join(self, command: JoinGroup) -> FsdpGroup:
        config, size, limit = self._config, self._config.settings.learner_ranks, self._config.start_timeout
        store = connect_store(command.host, command.port, size, limit)
        return join_group(store, own_address(config.redis_url), config.rank, size, limit, config.stall_timeout)

    def _load(self, ranks: FsdpGroup) -> Trainer:
        trainer, self._snapshots = load_trainer(self._config, ranks)
        return trainer

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run_commands(self, trainer: Trainer, ranks: FsdpGroup) -> str:
        try:
            while not isinstance(command := await self._commands.next(self._config.stall_timeout), Finish):
                work = await self._work(command, trainer)
                with ranks.together():
                    await self._in_thread(work)
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.close)
        except BaseException:
            ranks.close()
            raise
        return "finished"

    async def _work(self, command: Command, trainer: Trainer) -> Callable[[], object]:
        """This rank's part of a command, to be run in torch's thread. `step_loop.StepLoop` has rank 0's part."""
        match command:
            case Load(path):
                return lambda: checkpoint.load(trainer, Path(path))
            case Train(version, ids, max_staleness, learning_rate):
                groups = await self._ledger.groups(ids)
                trainer.apply_settings(max_staleness, learning_rate)
                return lambda: trainer.step(groups, version)
            case Restore(least, most) if self._snapshots is not None:
                snapshots = self._snapshots
                return lambda: snapshots.restore(least, most)
            case Snapshot(version) if self._snapshots is not None:
                snapshots = self._snapshots
                return lambda: snapshots.begin(version)
            case Publish():
                return lambda: trainer.policy.write_weights(None)
            case Save(version):
                return lambda: checkpoint.save(trainer, Path(self._config.output_dir), version)
            case WriteModel():
                return lambda: trainer.policy.write_model(None)
        raise HeadraceError(f"rank {self._config.rank} of the learner does not know the command {command}")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
