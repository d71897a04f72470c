"""The world of the queue: several jobs, gateways that start controllers of the first jobs in the queue, few cores.

real       RayControllerManager and its window of the queue · JobController, WorkerGroup and ControllerHeartbeats ·
           JobStore and Ledger on a real Redis server
simulated  Ray: named actors, placement, nodes · the work of a placed job, which holds its cores for a while · the
           expiry of keys, in virtual time
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headrace_core.redis_access import keys
from headrace_simulation.queue_fault_plan import QueuePlan
from headrace_simulation.queue_invariants import STATUS_DUMP, QueueObserver
from headrace_simulation.redis_port import Command, Packed, Server, pack
from headrace_simulation.virtual_loop import Process
from headrace_simulation.world import World

if TYPE_CHECKING:
    from headrace_simulation.queue_fake_ray import SimulatedRay

_SHARED = (keys.JOBS, keys.GATEWAY)


class QueueWorld(World):
    """The world of the queue. The service-wide keys of Redis are renamed, so that each world has its own."""

    plan: QueuePlan  # type: ignore[assignment]
    observer: QueueObserver  # type: ignore[assignment]

    def __init__(self, server: Server, plan: QueuePlan, folder: Path, plant: str | None, traced: bool) -> None:
        super().__init__(server, cast(Any, plan), folder, plant, traced)
        self.job_ids = [f"ftjob-queue-{plan.seed}-{number}" for number in range(len(plan.jobs))]
        self.ray: SimulatedRay
        self.observer = QueueObserver(self)
        of_jobs = self.observer.keys()
        self.dump = pack(("EVALSHA", server.load(STATUS_DUMP), len(of_jobs), *of_jobs))
        self._expires = dict[str, float]()
        """Virtual time of expiry, by key."""
        self._dropped = 0

    def own(self, key: str) -> str:
        """The name of a service-wide key in this world."""
        return f"{key}:{self.job_id}"

    async def call(self, process: Process, commands: Sequence[Command]) -> list[Any]:
        return await super().call(process, [self._owned(command) for command in commands])

    def _owned(self, command: Command) -> Command:
        return tuple(self.own(word) if isinstance(word, str) and word in _SHARED else word for word in command)

    def commands(self) -> list[Command | Packed]:
        """The commands for Redis; first, expired keys are deleted."""
        gone = [key for key, at in self._expires.items() if at <= self.loop.now]
        for key in gone:
            del self._expires[key]
        self._dropped = len(gone)
        asked = [self._timed(c) if isinstance(c, tuple) else c for c in super().commands()]
        return [*(("DEL", key) for key in gone), *asked]

    def answered(self, raw: list[Any]) -> None:
        super().answered(raw[self._dropped :])

    def _timed(self, command: Command) -> Command:
        """The command without its expiry, which the world handles."""
        name, *words = command
        if name == "SET" and "EX" in words:
            at = words.index("EX")
            key, rest = str(words[0]), words[:at] + words[at + 2 :]
            if "NX" not in words or key not in self._expires:
                self._expires[key] = self.loop.now + float(words[at + 1])
            return (name, *rest)
        if name == "EXPIRE":
            if str(words[0]) in self._expires:
                self._expires[str(words[0])] = self.loop.now + float(words[1])
            return ("EXISTS", words[0])
        return command
