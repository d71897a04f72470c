"""Places a job's workers on the nodes of a Ray cluster, and starts their processes there.

The worker classes are named here as text and imported only in the worker's own process, so that the gateway and the
controller load neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.logs import redact_streams
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import EvaluationMetrics

from .worker_process import ActorProcess, RankedProcess, WorkerProcess

NAMESPACE = "headrace"
LEARNER_ENTRY_POINT = "headrace_learner.worker:LearnerWorker"
RANK_ENTRY_POINT = "headrace_learner.rank_worker:RankWorker"
ROLLOUT_ENTRY_POINT = "headrace_rollout.worker:RolloutWorker"

ROLES = ("headrace_learner", "headrace_rollout")
"""Custom Ray resources: a node that declares one runs the image of that role. If no node of the cluster declares one,
every worker may run on every node."""
TAG = 0.001
"""Amount of a role's resource that a worker asks for: so small that it only selects nodes. Cores and GPUs limit the
number of workers."""

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


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources of one job, a bundle per process: the learner's ranks first, then the rollout workers."""

    bundles: tuple[dict[str, float], ...]
    ranks: int = 1

    def threads(self, bundle: int) -> int:
        """Thread count of the process in `bundle`: one per core."""
        return int(self.bundles[bundle]["CPU"])

    @property
    def total(self) -> dict[str, float]:
        """The sum of all bundles, by resource."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in names}

    def __str__(self) -> str:
        total = self.total
        return ", ".join(f"{total[name]:g} {name}" for name in ("CPU", "GPU") if total.get(name))


def alive_nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def plan(settings: Hyperparameters, nodes: Sequence[dict[str, float]]) -> Plan:
    """Divide the cores of `nodes`, and their GPUs if they have any, evenly among the learner and the rollout workers.

    A node that declares one of the resources `ROLES` takes only workers of that role, and the workers of a role share
    its nodes: the images differ, and the learner's image need not contain an engine. The thread counts of all processes
    add up to no more than the cores, because two 2-thread processes on two cores run 10 to 40 times slower than two
    1-thread processes. Raises `InvalidRequest` for more workers than cores.
    """
    ranks, workers = settings.learner_ranks, settings.rollout_workers
    learner = "a learner" if ranks == 1 else f"{ranks} ranks of a learner"
    rollout = f"{workers} rollout workers"
    if not any(role in node for node in nodes for role in ROLES):
        threads = _threads(nodes, ranks + workers, f"{rollout} and {learner}")
        rank_gpus, worker_gpus = _gpus(nodes, ranks, workers)
        return Plan((_bundle(threads, rank_gpus),) * ranks + (_bundle(threads, worker_gpus),) * workers, ranks)
    learner_nodes, rollout_nodes = ([node for node in nodes if role in node] for role in ROLES)
    rank = _bundle(_threads(learner_nodes, ranks, learner), _gpus(learner_nodes, ranks, 0)[0]) | {ROLES[0]: TAG}
    worker = _bundle(_threads(rollout_nodes, workers, rollout), _gpus(rollout_nodes, 0, workers)[1]) | {ROLES[1]: TAG}
    return Plan((rank,) * ranks + (worker,) * workers, ranks)


def _bundle(threads: int, gpus: float) -> dict[str, float]:
    return {"CPU": float(threads)} | ({"GPU": gpus} if gpus else {})


def _threads(nodes: Sequence[dict[str, float]], processes: int, who: str) -> int:
    """The most cores that each of `processes` equal processes can have when none may span two nodes."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    fitting = (t for t in range(max(cores, default=0), 0, -1) if sum(c // t for c in cores) >= processes)
    threads = next(fitting, 0)
    if not threads:
        raise InvalidRequest(
            f"no place for {who}: {processes} processes need a core each, and the nodes that may run them have "
            f"{sum(cores)} cores: lower rollout_workers or learner_ranks, or start with more cores",
            param="rollout_workers",
        )
    return threads


def _gpus(nodes: Sequence[dict[str, float]], ranks: int, workers: int) -> tuple[float, float]:
    """(GPUs of each rank of the learner, GPUs of each rollout worker); 0 where the nodes have none.

    Several ranks need a GPU each, because NCCL does not let two ranks share one; all other processes may share.
    """
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if not gpus or ranks <= 1:
        return (_gpu_share(gpus, ranks + workers),) * 2
    left = gpus - ranks
    if left < (1 if workers else 0):
        raise InvalidRequest(
            f"{ranks} ranks of a learner need a GPU each, and rollout workers beside them one more, but there are "
            f"{gpus:g}: lower learner_ranks",
            param="learner_ranks",
        )
    return 1.0, _gpu_share(left, workers)


def _gpu_share(gpus: float, processes: int) -> float:
    """An equal share of the GPUs, at most one, rounded down so that all processes fit."""
    return 1.0 if gpus >= processes else int(100 * gpus / processes) / 100


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
                runtime_env={"env_vars": environment(self._plan.threads(bundle))},
            )
            .remote(entry, config)
        )

    def remove(self) -> None:
        """Release the resources; Ray ends the worker processes that still run in them."""
        self._reserved.cancel()
        remove_placement_group(self._group)


async def _resolve(reference: Any) -> Any:
    return await reference


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker process. Thread counts must be set before torch is imported; the others keep
    workers from contacting a model hub or sending usage statistics."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
