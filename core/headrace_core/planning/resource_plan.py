"""Plans which resources each process of a job asks the cluster for: cores and GPUs, a bundle a process.

Invariants (tests/core/test_resource_plan.py tries them on random clusters):

* a bundle fits one node, and all bundles fit the nodes together: so a job alone on the cluster is always placed;
* an engine's devices are on one node, because tensor parallelism exchanges activations in every layer;
* where nodes have GPUs, every process has one, or shares one with others in equal parts; nodes without are not used;
* a process has no more cores than its part of the GPUs of any node that has one core at least for each of them, so
  that no GPU of those is left without cores for another job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config.hyperparameters import Hyperparameters
from ..errors import InvalidRequest

ROLES = ("headrace_learner", "headrace_rollout")
"""Custom Ray resources: a node that declares one runs the image of that role. If no node of the cluster declares one,
every worker may run on every node."""
TAG = 0.001
"""Amount of a role's resource that a worker asks for: so small that it only selects nodes. Cores and GPUs limit the
number of workers."""
_SHARE_STEPS = 10_000
"""Ray counts resources in ten-thousandths."""

Node = dict[str, float]
Bundle = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources of one job, a bundle per process: the learner's ranks first, then the rollout workers."""

    bundles: tuple[Bundle, ...]
    ranks: int = 1

    def threads(self, bundle: int) -> int:
        """Thread count of the process in `bundle`, and of those that it starts, together: one per core."""
        return int(self.bundles[bundle]["CPU"])

    def gpus(self, bundle: int) -> float:
        """GPUs, or the part of one, of the process in `bundle`."""
        return self.bundles[bundle].get("GPU", 0.0)

    @property
    def total(self) -> dict[str, float]:
        """The sum of all bundles, by resource."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in names}

    def __str__(self) -> str:
        total = self.total
        return ", ".join(f"{total[name]:g} {name}" for name in ("CPU", "GPU") if total.get(name))


@dataclass(frozen=True, slots=True)
class _Demand:
    """What is to be placed on the same nodes."""

    ranks: int
    workers: int
    devices: int
    """Processes, or GPUs, of each worker's engine: its tensor_parallel_size."""

    @property
    def processes(self) -> int:
        return self.ranks + self.workers * self.devices

    @property
    def sharing(self) -> int:
        """Processes that may share a GPU. NCCL does not let two ranks of one group do so, a learner's or an
        engine's."""
        return (self.workers if self.devices == 1 else 0) + (self.ranks if self.ranks == 1 else 0)

    def __str__(self) -> str:
        learner = "a learner" if self.ranks == 1 else f"{self.ranks} ranks of a learner"
        rollout = f"{self.workers} rollout workers"
        if self.devices > 1:
            rollout += f" of {self.devices} processes on one node"
        return " and ".join(([rollout] if self.workers else []) + ([learner] if self.ranks else []))


def plan(settings: Hyperparameters, nodes: Sequence[Node]) -> Plan:
    """Divide the GPUs of `nodes`, or their cores if they have none, evenly among the learner and the rollout workers.

    A node that declares one of the resources `ROLES` takes only workers of that role, and the workers of a role share
    its nodes: the images differ, and the learner's image need not contain an engine. The thread counts of all processes
    add up to no more than the cores, because two 2-thread processes on two cores run 10 to 40 times slower than two
    1-thread processes. Raises `InvalidRequest` for more processes than cores, or engines larger than every node.
    """
    ranks, workers, devices = settings.learner_ranks, settings.rollout_workers, settings.tensor_parallel_size
    if not any(role in node for node in nodes for role in ROLES):
        rank, worker = _bundles(nodes, _Demand(ranks, workers, devices))
    else:
        learner_nodes, rollout_nodes = ([node for node in nodes if role in node] for role in ROLES)
        rank = _bundles(learner_nodes, _Demand(ranks, 0, 1))[0] | {ROLES[0]: TAG}
        worker = _bundles(rollout_nodes, _Demand(0, workers, devices))[1] | {ROLES[1]: TAG}
    return Plan((rank,) * ranks + (worker,) * workers, ranks)


def _bundles(nodes: Sequence[Node], demand: _Demand) -> tuple[Bundle, Bundle]:
    """(resources of each rank of the learner, resources of each rollout worker)."""
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= 1]
    return _share_gpus(with_gpus, demand) if with_gpus else _share_cores(nodes, demand)


def _share_cores(nodes: Sequence[Node], demand: _Demand) -> tuple[Bundle, Bundle]:
    """The most cores that each process can have if all have as many."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    for threads in range(max(cores, default=0), 0, -1):
        if _fit([c // threads for c in cores], demand, demand.processes):
            return {"CPU": float(threads)}, {"CPU": float(threads * demand.devices)}
    raise _too_few_cores(sum(cores), demand)


def _share_gpus(nodes: Sequence[Node], demand: _Demand) -> tuple[Bundle, Bundle]:
    """A GPU for each process if there are as many, and else one for as few together as possible; cores go along."""
    gpus = [int(node["GPU"]) for node in nodes]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if not _some_fit(gpus, demand):
        raise _too_few_gpus(gpus, demand)
    for together in range(1, max(1, demand.sharing) + 1):
        needed = demand.processes - demand.sharing + math.ceil(demand.sharing / together)
        parts = [c // (g * together) for c, g in zip(cores, gpus, strict=True)]
        for threads in range(min(filter(None, parts), default=1), 0, -1):
            usable = [min(g, c // (threads * together)) for c, g in zip(cores, gpus, strict=True)]
            if _fit(usable, demand, needed):
                return _with_gpus(demand, threads, together)
    raise _too_few_cores(sum(cores), demand, nodes="nodes with GPUs")


def _some_fit(gpus: Sequence[int], demand: _Demand) -> bool:
    """Whether the GPUs suffice, if all that may share one do."""
    return _fit(gpus, demand, demand.processes - demand.sharing + min(1, demand.sharing))


def _fit(slots: Sequence[int], demand: _Demand, needed: int) -> bool:
    """Whether nodes with so many `slots` (one for a process, or a GPU) have `needed` in all, and those of each engine
    together."""
    engines = sum(s // demand.devices for s in slots)
    return sum(slots) >= needed and (demand.devices == 1 or engines >= demand.workers)


def _with_gpus(demand: _Demand, threads: int, together: int) -> tuple[Bundle, Bundle]:
    """Bundles where `together` processes share a GPU and have `threads` cores each."""
    part = {"CPU": float(threads), "GPU": 1.0 if together == 1 else _SHARE_STEPS // together / _SHARE_STEPS}
    whole = threads * together
    rank = part if demand.ranks == 1 else {"CPU": float(whole), "GPU": 1.0}
    engine = {"CPU": float(whole * demand.devices), "GPU": float(demand.devices)}
    return rank, part if demand.devices == 1 else engine


def _too_few_cores(cores: int, demand: _Demand, nodes: str = "nodes that may run them") -> InvalidRequest:
    lower = "rollout_workers or learner_ranks"
    if demand.devices > 1:
        lower = "rollout_workers, learner_ranks or tensor_parallel_size"
    return InvalidRequest(
        f"no place for {demand}: {demand.processes} processes need a core each, and the {nodes} have "
        f"{cores} cores: lower {lower}, or start with more cores",
        param="rollout_workers",
    )


def _too_few_gpus(gpus: Sequence[int], demand: _Demand) -> InvalidRequest:
    if demand.devices > 1:
        beside = f", beside {demand.ranks} of the learner" if demand.ranks else ""
        return InvalidRequest(
            f"no place for {demand.workers} engines of {demand.devices} GPUs on one node each{beside}: the nodes have "
            f"{' + '.join(map(str, sorted(gpus, reverse=True)))} GPUs: lower tensor_parallel_size or rollout_workers",
            param="tensor_parallel_size",
        )
    fewer = max(1, sum(gpus) - min(1, demand.workers))
    return InvalidRequest(
        f"{demand.ranks} ranks of a learner need a GPU each, and rollout workers beside them one more, but there are "
        f"{sum(gpus)}: set learner_ranks to {fewer}, or start with more GPUs",
        param="learner_ranks",
    )
