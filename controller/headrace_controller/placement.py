"""Where Ray puts a job's workers, and how it starts them there.

The worker classes are named here as text and imported in the worker's own process only: the gateway and the controller
load neither torch nor vLLM.
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
"""Ray resources by which a cluster's nodes say whose image they run; a cluster that names none runs all everywhere."""
TAG = 0.001
"""So little of a role is asked for that it says where, not how many: cores and GPUs do the counting."""


ANSWER_SECONDS = 60.0
"""Ray's head may be busy; it is not waited for longer."""
PLACE_SECONDS, PLACE_LOOK_SECONDS = 10.0, 2.0
"""How long Ray may take to reserve a lost node's bundles elsewhere; how often it is asked."""


class WorkerActor:
    """Runs one worker class in a process of its own: what its `from_config` makes."""

    def __init__(self, entry: str, config: WorkerConfig) -> None:
        redact_streams()
        module, name = entry.split(":")
        self._worker: Any = None
        self._fault: Exception | None = None
        try:
            self._worker = getattr(importlib.import_module(module), name).from_config(config)
        except Exception as error:  # raised by `start`: what a constructor raises, Ray writes into its logs, unredacted
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
        """Answers, whatever else goes on."""

    async def evaluate(self, version: int) -> EvaluationMetrics:
        result: EvaluationMetrics = await self._worker.evaluate(version)
        return result


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources of one job: the first bundles are the learner's ranks', the others the rollout workers'."""

    bundles: tuple[dict[str, float], ...]
    ranks: int = 1

    def threads(self, bundle: int) -> int:
        """Of the process in `bundle`: one for each of its cores."""
        return int(self.bundles[bundle]["CPU"])

    @property
    def total(self) -> dict[str, float]:
        """All bundles together, by resource."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in names}

    def __str__(self) -> str:
        total = self.total
        return ", ".join(f"{total[name]:g} {name}" for name in ("CPU", "GPU") if total.get(name))


def alive_nodes() -> list[dict[str, float]]:
    """The resources of each of the cluster's nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def plan(settings: Hyperparameters, nodes: Sequence[dict[str, float]]) -> Plan:
    """Share the cores of `nodes`, and their GPUs where they have any, evenly between learner and rollout workers.

    Where a node declares one of the resources `ROLES`, it takes workers of that role only, and the nodes of a role are
    shared by its workers: images differ, and a learner's need not hold an engine. Every process gets a thread count of
    its own, and their sum does not exceed the cores: two 2-thread processes on two cores run 10 to 40 times slower than
    two 1-thread ones. Raises `InvalidRequest` for more workers than cores.
    """
    ranks, workers = settings.learner_ranks, settings.rollout_workers
    learner = "a learner" if ranks == 1 else f"{ranks} ranks of a learner"
    rollout = f"{workers} rollout workers"
    if not any(role in node for node in nodes for role in ROLES):
        threads = _threads(nodes, ranks + workers, f"{rollout} and {learner}")
        of_rank, of_worker = _gpus(nodes, ranks, workers)
        return Plan((_bundle(threads, of_rank),) * ranks + (_bundle(threads, of_worker),) * workers, ranks)
    at_learner, at_rollout = ([node for node in nodes if role in node] for role in ROLES)
    rank = _bundle(_threads(at_learner, ranks, learner), _gpus(at_learner, ranks, 0)[0]) | {ROLES[0]: TAG}
    worker = _bundle(_threads(at_rollout, workers, rollout), _gpus(at_rollout, 0, workers)[1]) | {ROLES[1]: TAG}
    return Plan((rank,) * ranks + (worker,) * workers, ranks)


def _bundle(threads: int, gpus: float) -> dict[str, float]:
    return {"CPU": float(threads)} | ({"GPU": gpus} if gpus else {})


def _threads(nodes: Sequence[dict[str, float]], processes: int, who: str) -> int:
    """What each of equal `processes` gets when none may span two nodes."""
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
    """What each rank of the learner and each rollout worker gets; 0 where there are none.

    Several ranks need a GPU each, because NCCL does not let two share one; all others may share.
    """
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if not gpus or ranks <= 1:
        return (_part(gpus, ranks + workers),) * 2
    left = gpus - ranks
    if left < (1 if workers else 0):
        raise InvalidRequest(
            f"{ranks} ranks of a learner need a GPU each, and rollout workers beside them one more, but there are "
            f"{gpus:g}: lower learner_ranks",
            param="learner_ranks",
        )
    return 1.0, _part(left, workers)


def _part(gpus: float, processes: int) -> float:
    """Rounded down, so that all of them fit."""
    return 1.0 if gpus >= processes else int(100 * gpus / processes) / 100


class Reservation(Protocol):
    """A job's reserved resources; worker processes are started in its bundles."""

    async def ready(self, timeout: float) -> bool:
        """Whether all resources are reserved, within `timeout` seconds."""
        ...

    async def watch(self) -> None:
        """Never returns. Raises `PlacementLost`, once some of the resources are gone for good."""
        ...

    def start_learner(self, config: WorkerConfig) -> WorkerProcess:
        """All ranks of a new learner."""
        ...

    def start(self, bundle: int, entry: str, config: WorkerConfig) -> WorkerProcess:
        """A new worker process in `bundle`: of the class `entry`, as `module:class`."""
        ...

    def remove(self) -> None:
        """Give the resources back; worker processes still in it are ended."""
        ...


class Cluster(Protocol):
    """The machines that workers run on."""

    async def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is alive, as Ray names them: `CPU`, `GPU`, …"""
        ...

    async def only_node(self) -> bool:
        """Whether the cluster has, and had, one node alone: what that one lacks, nobody will bring."""
        ...

    def reserve(self, plan: Plan) -> Reservation:
        """Ask for resources; they may come much later, see `Reservation.ready`."""
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
    """A node was lost with resources of the job, and Ray did not find others like them in time."""

    code = "place_lost"


class Placement:
    """A `Reservation` in Ray, which moves the bundles of a lost node to another by itself, where one has room."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._group: PlacementGroup = placement_group([dict(b) for b in plan.bundles], strategy="PACK")
        self._reserved = asyncio.ensure_future(_resolve(self._group.ready()))

    async def ready(self, timeout: float) -> bool:
        """Whether all resources are reserved, within `timeout` seconds."""
        done, _ = await asyncio.wait([self._reserved], timeout=timeout)
        return bool(done)

    async def watch(self) -> None:
        """Raises `PlacementLost`, once some of the resources have been gone for `PLACE_SECONDS`; never returns."""
        gone = 0.0
        while gone < PLACE_SECONDS:
            await asyncio.sleep(PLACE_LOOK_SECONDS)
            table = await asyncio.wait_for(asyncio.to_thread(placement_group_table, self._group), ANSWER_SECONDS)
            gone = 0.0 if table["state"] == "CREATED" else gone + PLACE_LOOK_SECONDS
        raise PlacementLost(
            f"the place of its workers was lost with a node, and no other node has {self._plan} like it"
        )

    def start_learner(self, config: WorkerConfig) -> WorkerProcess:
        """All ranks of it, under a name of this start, so that none meets a rank of an earlier one."""
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
        """A new worker process in `bundle`."""
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
        """Give the resources back; worker processes still in it are ended by Ray."""
        self._reserved.cancel()
        remove_placement_group(self._group)


async def _resolve(reference: Any) -> Any:
    return await reference


def environment(threads: int) -> dict[str, str]:
    """Thread counts must be set before torch is imported; no worker may look for a model hub."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
