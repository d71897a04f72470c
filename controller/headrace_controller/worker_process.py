"""The controller's handle on a worker's processes: one Ray actor, or several that act as one worker.

Invariant: a call to a process that died raises a `RayError`; a call to a process that is stopped (SIGSTOP) never
returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import ray


class WorkerProcess(Protocol):
    """A launched worker, as its supervisor uses it. `start`, `run`, `stop`: see
    `headrace_core.protocols.worker.Worker`."""

    async def start(self) -> dict[str, Any]: ...

    async def run(self) -> str: ...

    async def stop(self) -> None: ...

    async def ping(self) -> None:
        """Returns as soon as the process's event loop answers; never, for a stopped process."""
        ...

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call any other method of the worker."""
        ...

    def kill(self) -> None:
        """End the process. Returns at once; Ray sends SIGKILL if the process has not ended within seconds."""
        ...


class ActorProcess:
    """A worker in one process: a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> dict[str, Any]:
        facts: dict[str, Any] = await self._actor.start.remote()
        return facts

    async def run(self) -> str:
        return str(await self._actor.run.remote())

    async def stop(self) -> None:
        await self._actor.stop.remote()

    async def ping(self) -> None:
        await self._actor.ping.remote()

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._actor, method).remote(*arguments)

    def kill(self) -> None:
        ray.kill(self._actor)


class RankedProcess:
    """All ranks of a learner as one worker: it fails when one rank fails, and restarts with all of them.

    A single rank cannot be restarted: its shards must be of the same step as those of the other ranks.
    """

    def __init__(self, ranks: Sequence[WorkerProcess]) -> None:
        self._ranks = ranks

    async def start(self) -> dict[str, Any]:
        """Rank 0's facts, and the process id of each other rank."""
        first, *others = await asyncio.gather(*(rank.start() for rank in self._ranks))
        return first | {f"rank {i}": f"pid {facts['pid']}" for i, facts in enumerate(others, 1)}

    async def run(self) -> str:
        """Rank 0's result; the other ranks end with rank 0."""
        return (await asyncio.gather(*(rank.run() for rank in self._ranks)))[0]

    async def stop(self) -> None:
        await asyncio.gather(*(rank.stop() for rank in self._ranks))

    async def ping(self) -> None:
        """Returns when every rank has answered: no rank can continue without the others."""
        await asyncio.gather(*(rank.ping() for rank in self._ranks))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of rank 0."""
        return await self._ranks[0].call(method, *arguments)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
