"""How rank 0 runs work in torch: in one thread here, and in step on the other ranks, if there are any.

    LearnerWorker ──► run_on_all(command, work) ─┬─► command stream ─► the other ranks do their part (`rank_worker`)
                                                 └─► work, in torch's thread of this process

Invariant: a learner of one process sends no commands, and in float32 joins no process group of torch.distributed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from headrace_core.protocols.worker import WorkerConfig

from ..device import compute_dtype
from .process_group import ProcessGroup, SingleProcess, one_process
from .rank_commands import Command, CommandStream, Finish, Heartbeat, JoinGroup
from .torch_thread import torch_thread

T = TypeVar("T")


class Coordinator(Protocol):
    """Runs operations on all ranks for rank 0. Only one call may be in progress at a time."""

    @property
    def ranks(self) -> ProcessGroup:
        """The process group; valid after `connect`."""
        ...

    async def connect(self) -> None:
        """Make the other ranks join. Raises `TimedOut` if one does not."""
        ...

    async def run_on_all(self, command: Command, work: Callable[[], T]) -> T:
        """Run `work` in this process while the other ranks execute `command`. Raises `RanksLost`."""
        ...

    async def run_local(self, work: Callable[[], T]) -> T:
        """Run `work` in this process only."""
        ...

    async def send_heartbeat(self) -> None:
        """Tell the other ranks that this one is alive."""
        ...

    async def finish(self) -> None:
        """Send the last command to the other ranks, and leave the group. Idempotent."""
        ...

    async def close(self) -> None:
        """`finish`, then release all resources once the work in progress has ended. Idempotent."""
        ...


class RankCoordinator:
    """The `Coordinator` of a real learner, with one thread for all work in torch."""

    def __init__(self, config: WorkerConfig, redis: Redis) -> None:
        self._config = config
        self._size = config.settings.learner_ranks
        self._thread = torch_thread(config.threads)
        self._commands: CommandStream | None = None
        """None without other ranks, and after `finish`."""
        if self._size > 1:
            self._commands = CommandStream(redis, config.job_id, config.ranks_start)
        self.ranks: ProcessGroup = SingleProcess()

    async def connect(self) -> None:
        """See `Coordinator`."""
        if self._commands is None:
            self.ranks = await self.run_local(lambda: one_process(compute_dtype(self._config.settings)))
            return
        from . import fsdp  # imported here because it takes 0.7 s, and a single process does not need it

        config, size, limit = self._config, self._size, self._config.start_timeout
        own = fsdp.own_address(config.redis_url)
        store = fsdp.host_store(own, size, limit)
        await self._commands.send(JoinGroup(store.host, store.port))
        self.ranks = await self.run_local(lambda: fsdp.join_group(store, own, 0, size, limit, config.stall_timeout))

    async def run_on_all(self, command: Command, work: Callable[[], T]) -> T:
        """See `Coordinator`."""
        if self._commands is not None:
            await self._commands.send(command)
        with self.ranks.together():
            return await self.run_local(work)

    async def run_local(self, work: Callable[[], T]) -> T:
        """Run `work` in torch's thread of this process only."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def send_heartbeat(self) -> None:
        """See `Coordinator`."""
        if self._commands is not None:
            await self._commands.send(Heartbeat())

    async def finish(self) -> None:
        """See `Coordinator`."""
        commands, self._commands = self._commands, None
        if commands is not None:
            await commands.send(Finish())
        await asyncio.to_thread(self.ranks.close)

    async def close(self) -> None:
        """See `Coordinator`."""
        await self.finish()
        await asyncio.to_thread(self._thread.shutdown)
