"""Reserves the resources of a job's plan in a Ray cluster, and starts the job's processes there.

The worker classes are named here as text and imported only in the worker's own process, so that the gateway and the
controller load neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
from typing import Any, Protocol

import msgspec
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from headrace_core.errors import Unavailable
from headrace_core.logs import redact_streams
from headrace_core.planning.resource_plan import ROLES, Plan
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import EvaluationMetrics

from .worker_process import ActorProcess, RankedProcess, WorkerProcess

NAMESPACE = "headrace"
LEARNER_ENTRY_POINT = "headrace_learner.worker:LearnerWorker"
RANK_ENTRY_POINT = "headrace_learner.rank_worker:RankWorker"
ROLLOUT_ENTRY_POINT = "headrace_rollout.worker:RolloutWorker"

RAY_SECONDS = 60.0
"""Time limit of a question to Ray, whose head may be busy."""
PLACE_SECONDS, PLACE_POLL_SECONDS = 10.0, 2.0
"""How long Ray may take to reserve the bundles of a lost node elsewhere; interval of the polls for it."""


class WorkerActor:
    """The Ray actor around one worker, made by the `from_config` of the class that `entry` (`module:class`) names."""

    def __init__(self, entry: str, config: WorkerConfig) -> None:
        redact_streams()
        module, name = entry.split(":")
        self._worker: Any = None
        self._fault: Exception | None = None
        try:
            self._worker = getattr(importlib.import_module(module), name).from_config(config)
        except Exception as error:  # `start` raises it: Ray writes a constructor's error into its logs, unredacted
            self._fault = error

    async def start(self) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        facts: dict[str, Any] = await self._worker.start()
        return facts | {"pid": os.getpid()}

    async def run(self) -> str:
        return str(await self._worker.run())

    async def stop(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def ping(self) -> None:
        """Returns at once, whatever else the worker does: `max_concurrency` lets calls run side by side."""

    async def evaluate(self, version: int) -> EvaluationMetrics:
        result: EvaluationMetrics = await self._worker.evaluate(version)
        return result


def alive_nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Reservation(Protocol):
    """A job's reserved resources, in whose bundles its worker processes are started."""

    async def ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; whether all resources are reserved."""
        ...

    async def watch(self) -> None:
        """Never returns. Raises `PlacementLost` when some of the resources are gone for good."""
        ...

    def start_learner(self, config: WorkerConfig) -> WorkerProcess:
        """Start all ranks of a new learner."""
        ...

    def start(self, bundle: int, entry: str, config: WorkerConfig) -> WorkerProcess:
        """Start a worker of the class `entry` (`module:class`) in a new process in `bundle`."""
        ...

    def remove(self) -> None:
        """Release the resources, and end the worker processes that still run in them."""
        ...


class Cluster(Protocol):
    """The machines that workers run on."""

    async def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is alive, under Ray's names: `CPU`, `GPU`, …"""
        ...

    async def only_node(self) -> bool:
        """Whether the cluster has one node and never had another, so that waiting brings no further resources."""
        ...

    def reserve(self, plan: Plan) -> Reservation:
        """Request resources. Returns at once; they may become available much later (`Reservation.ready`)."""
        ...


class RayCluster:
    """The Ray cluster that this process is connected to."""

    async def nodes(self) -> list[dict[str, float]]:
        """See `Cluster`."""
        return await asyncio.to_thread(alive_nodes)

    async def only_node(self) -> bool:
        """See `Cluster`."""
        return len(await asyncio.to_thread(ray.nodes)) == 1

    def reserve(self, plan: Plan) -> Reservation:
        """See `Cluster`."""
        return Placement(plan)


class PlacementLost(Unavailable):
    """A node with resources of the job was lost, and Ray found no replacement within `PLACE_SECONDS`."""

    code = "place_lost"


class Placement:
    """A `Reservation` as a Ray placement group. Ray itself moves the bundles of a lost node to a node with free
    resources."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._group: PlacementGroup = placement_group([dict(b) for b in plan.bundles], strategy="PACK")
        self._reserved = asyncio.ensure_future(_resolve(self._group.ready()))

    async def ready(self, timeout: float) -> bool:
        """See `Reservation`."""
        done, _ = await asyncio.wait([self._reserved], timeout=timeout)
        return bool(done)

    async def watch(self) -> None:
        """See `Reservation`: resources count as gone for good after `PLACE_SECONDS`."""
        gone = 0.0
        while gone < PLACE_SECONDS:
            await asyncio.sleep(PLACE_POLL_SECONDS)
            table = await asyncio.wait_for(asyncio.to_thread(placement_group_table, self._group), RAY_SECONDS)
            gone = 0.0 if table["state"] == "CREATED" else gone + PLACE_POLL_SECONDS
        raise PlacementLost(
            f"the place of its workers was lost with a node, and no other node has {self._plan} like it"
        )

    def start_learner(self, config: WorkerConfig) -> WorkerProcess:
        """Start all ranks of a new learner. They share a token of this start, so that no rank connects to a rank of an
        earlier start."""
        if self._plan.ranks == 1:
            return self.start(0, LEARNER_ENTRY_POINT, config)
        start = secrets.token_hex(4)
        configs = [
            msgspec.structs.replace(config, rank=rank, ranks_start=start, worker=f"{config.worker}-rank-{rank}")
            for rank in range(1, self._plan.ranks)
        ]
        first = self.start(0, LEARNER_ENTRY_POINT, msgspec.structs.replace(config, ranks_start=start))
        return RankedProcess([first, *(self.start(c.rank, RANK_ENTRY_POINT, c) for c in configs)])

    def start(self, bundle: int, entry: str, config: WorkerConfig) -> WorkerProcess:
        """See `Reservation`."""
        resources = self._plan.bundles[bundle]
        return ActorProcess(
            ray.remote(WorkerActor)
            .options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0.0),
                resources={role: resources[role] for role in ROLES if role in resources},
                max_concurrency=64,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
                runtime_env={"env_vars": environment(self._plan.threads(bundle), self._plan.gpus(bundle))},
            )
            .remote(entry, config)
        )

    def remove(self) -> None:
        """Release the resources; Ray ends the worker processes that still run in them."""
        self._reserved.cancel()
        remove_placement_group(self._group)


async def _resolve(reference: Any) -> Any:
    return await reference


def environment(threads: int, gpus: float) -> dict[str, str]:
    """Environment variables of a worker process. Thread counts must be set before torch is imported; the others keep
    workers from contacting a model hub or sending usage statistics.

    When an actor is killed, Ray kills its child processes first. Among them are the guards of engines and of reward
    code, which end all that was started below and remove what it shared; so Ray is told to leave them alone.

    A process without a GPU of its own sees none. Ray leaves all of a node's visible to it, and it would compute on one
    that belongs to a job.
    """
    no_gpu = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return no_gpu | {
        "RAY_kill_child_processes_on_worker_exit": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
