"""Where Ray puts a job's workers, and how the controller speaks to them.

The worker classes are named here as text and imported in the worker's own process only: the gateway and the controller
load neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from headrace_core.errors import InvalidRequest
from headrace_core.hyperparameters import Hyperparameters
from headrace_core.metrics import EvaluationMetrics
from headrace_core.workers import WorkerConfig

NAMESPACE = "headrace"
LEARNER = "headrace_learner.worker:LearnerWorker"
ROLLOUT = "headrace_rollout.worker:RolloutWorker"

ROLES = ("headrace_learner", "headrace_rollout")
"""Ray resources by which a cluster's nodes say whose image they run; a cluster that names none runs all everywhere."""
_TAG = 0.001
"""So little of a role is asked for that it says where, not how many: cores and GPUs do the counting."""


class WorkerActor:
    """Runs one worker class in a process of its own."""

    def __init__(self, entry: str, config: WorkerConfig) -> None:
        module, name = entry.split(":")
        self._worker = getattr(importlib.import_module(module), name)(config)

    async def start(self) -> dict[str, Any]:
        """See `headrace_core.workers.Worker`."""
        facts: dict[str, Any] = await self._worker.start()
        return facts | {"pid": os.getpid()}

    async def run(self) -> str:
        """See `headrace_core.workers.Worker`."""
        return str(await self._worker.run())

    async def stop(self) -> None:
        """See `headrace_core.workers.Worker`."""
        await self._worker.stop()

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """See `headrace_core.workers.EvaluatingWorker`."""
        result: EvaluationMetrics = await self._worker.evaluate(version)
        return result


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources of one job: bundle 0 is the learner's, the others are the rollout workers'."""

    bundles: tuple[dict[str, float], ...]

    def threads(self, bundle: int) -> int:
        """Of the process in `bundle`: one for each of its cores."""
        return int(self.bundles[bundle]["CPU"])

    def __str__(self) -> str:
        total = {name: sum(b.get(name, 0.0) for b in self.bundles) for name in ("CPU", "GPU")}
        return ", ".join(f"{amount:g} {name}" for name, amount in total.items() if amount)


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
    workers = settings.rollout_workers
    if not any(role in node for node in nodes for role in ROLES):
        return Plan((_share(nodes, workers + 1, f"{workers} rollout workers and a learner"),) * (workers + 1))
    learner, rollout = ([node for node in nodes if role in node] for role in ROLES)
    return Plan(
        (
            _share(learner, 1, "a learner") | {ROLES[0]: _TAG},
            *(_share(rollout, workers, f"{workers} rollout workers") | {ROLES[1]: _TAG},) * workers,
        )
    )


def _share(nodes: Sequence[dict[str, float]], processes: int, who: str) -> dict[str, float]:
    """What each of equal `processes` gets when none may span two nodes."""
    cores, gpus = [int(node.get("CPU", 0)) for node in nodes], sum(node.get("GPU", 0.0) for node in nodes)
    fitting = (t for t in range(max(cores, default=0), 0, -1) if sum(c // t for c in cores) >= processes)
    threads = next(fitting, 0)
    if not threads:
        raise InvalidRequest(
            f"no place for {who}: {processes} processes need a core each, and the nodes that may run them have "
            f"{sum(cores)} cores: lower rollout_workers, or start with more cores",
            param="rollout_workers",
        )
    bundle = {"CPU": float(threads)}
    if gpus:
        bundle["GPU"] = 1.0 if gpus >= processes else round(gpus / processes, 2)
    return bundle


class Placement:
    """A job's reserved resources; worker processes are started in its bundles."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._group: PlacementGroup = placement_group([dict(b) for b in plan.bundles], strategy="PACK")

    async def ready(self, timeout: float) -> bool:
        """Whether all resources are reserved, within `timeout` seconds."""
        done, _ = await asyncio.wait([asyncio.ensure_future(_resolve(self._group.ready()))], timeout=timeout)
        return bool(done)

    def start(self, bundle: int, entry: str, config: WorkerConfig) -> Any:
        """A handle on a new worker process in `bundle`."""
        resources = self._plan.bundles[bundle]
        return (
            ray.remote(WorkerActor)
            .options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0.0),
                resources={role: resources[role] for role in ROLES if role in resources},
                max_concurrency=64,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
                runtime_env={"env_vars": _environment(self._plan.threads(bundle))},
            )
            .remote(entry, config)
        )

    def remove(self) -> None:
        """Give the resources back; worker processes still in it are ended by Ray."""
        remove_placement_group(self._group)


async def _resolve(reference: Any) -> Any:
    return await reference


def _environment(threads: int) -> dict[str, str]:
    """Thread counts must be set before torch is imported; no worker may look for a model hub."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
