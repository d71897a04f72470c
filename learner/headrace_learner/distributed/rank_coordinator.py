"""Rank 0's way to torch: one thread for all of its work, with the other ranks, where there are any, in step.

    LearnerWorker ──► together(order, work) ─┬─► orders ─► the other ranks do their part (`rank_worker`)
                                             └─► work, in torch's thread here

Invariant: a learner of one process gives no orders, and loads nothing of torch.distributed's process groups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from headrace_core.protocols.worker import WorkerConfig

from .process_group import ProcessGroup, SingleProcess
from .rank_commands import Command, CommandStream, Finish, Heartbeat, JoinGroup
from .torch_thread import torch_thread

T = TypeVar("T")


class Coordinator(Protocol):
    """What rank 0 asks of all ranks, itself included. Each call is of one at a time."""

    @property
    def ranks(self) -> ProcessGroup:
        """All of them, once `connect` has returned."""
        ...

    async def connect(self) -> None:
        """Call the other ranks. Raises `TimedOut` when one does not come."""
        ...

    async def run_on_all(self, order: Command, work: Callable[[], T]) -> T:
        """Run `work` in this process while the other ranks do their part of it by `order`. Raises `RanksLost`."""
        ...

    async def run_local(self, work: Callable[[], T]) -> T:
        """Run `work` in this process only."""
        ...

    async def send_heartbeat(self) -> None:
        """Tell the other ranks that this one is alive."""
        ...

    async def finish(self) -> None:
        """Nothing more is asked of the other ranks. Idempotent."""
        ...

    async def close(self) -> None:
        """Let go of everything, once what was begun has ended. Idempotent."""
        ...


class RankCoordinator:
    """The learner's ranks as rank 0 sees them: a `Coordinator` with one thread for all of torch."""

    def __init__(self, config: WorkerConfig, redis: Redis) -> None:
        self._config = config
        self._size = config.settings.learner_ranks
        self._thread = torch_thread(config.threads)
        self._orders: CommandStream | None = None
        """None where there is nobody else, or nobody any more."""
        if self._size > 1:
            self._orders = CommandStream(redis, config.job_id, config.ranks_start)
        self.ranks: ProcessGroup = SingleProcess()
        """All of them, once `connect` has returned."""

    async def connect(self) -> None:
        """Call the other ranks. Raises `TimedOut` when one does not come."""
        if self._orders is None:
            return
        from . import fsdp  # 0.7 s to import: not for one process

        config, size, limit = self._config, self._size, self._config.start_timeout
        own = fsdp.own_address(config.redis_url)
        store = fsdp.host_store(own, size, limit)
        await self._orders.give(JoinGroup(store.host, store.port))
        self.ranks = await self.run_local(lambda: fsdp.join_group(store, own, 0, size, limit, config.stall_timeout))

    async def run_on_all(self, order: Command, work: Callable[[], T]) -> T:
        """Run `work` here, while the other ranks do their part of it by `order`. Raises `RanksLost`."""
        if self._orders is not None:
            await self._orders.give(order)
        with self.ranks.together():
            return await self.run_local(work)

    async def run_local(self, work: Callable[[], T]) -> T:
        """Run it in torch's thread, and here only."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def send_heartbeat(self) -> None:
        """Tell the other ranks that this one is alive."""
        if self._orders is not None:
            await self._orders.give(Heartbeat())

    async def finish(self) -> None:
        """No more orders. Idempotent."""
        orders, self._orders = self._orders, None
        if orders is not None:
            await orders.give(Finish())
        await asyncio.to_thread(self.ranks.close)

    async def close(self) -> None:
        """Also end the thread, when it has done what it was given. Idempotent."""
        await self.finish()
        await asyncio.to_thread(self._thread.shutdown)
