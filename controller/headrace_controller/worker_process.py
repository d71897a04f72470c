"""How the controller speaks to the processes of its workers: by Ray actors, one of them or several as one.

Invariant: a process that died raises a `RayError` in whatever was asked of it; one that is stopped answers nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import ray


class WorkerProcess(Protocol):
    """A worker that was launched, seen by its supervisor."""

    async def start(self) -> dict[str, Any]:
        """See `headrace_core.protocols.worker.Worker`, like the next two."""
        ...

    async def run(self) -> str: ...

    async def stop(self) -> None: ...

    async def ping(self) -> None:
        """Returns as soon as it can: one that is stopped never does."""
        ...

    async def call(self, method: str, *arguments: Any) -> Any:
        """Whatever else it can be asked."""
        ...

    def kill(self) -> None:
        """End it at once; Ray sends SIGKILL to one that does not see to it itself within seconds."""
        ...


class ActorProcess:
    """A worker in one process, by its Ray actor."""

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
    """All ranks of a learner as one worker: what fails in one of them has failed, and the next start is of all.

    A rank alone could not come back: its shards are in step with those of the others.
    """

    def __init__(self, ranks: Sequence[WorkerProcess]) -> None:
        self._ranks = ranks

    async def start(self) -> dict[str, Any]:
        """Rank 0's facts, and where the others are."""
        first, *others = await asyncio.gather(*(rank.start() for rank in self._ranks))
        return first | {f"rank {i}": f"pid {facts['pid']}" for i, facts in enumerate(others, 1)}

    async def run(self) -> str:
        """Rank 0's answer; the others end when it does."""
        return (await asyncio.gather(*(rank.run() for rank in self._ranks)))[0]

    async def stop(self) -> None:
        await asyncio.gather(*(rank.stop() for rank in self._ranks))

    async def ping(self) -> None:
        """All of them: without one the others cannot go on."""
        await asyncio.gather(*(rank.ping() for rank in self._ranks))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of rank 0."""
        return await self._ranks[0].call(method, *arguments)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
