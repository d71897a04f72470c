"""The devices that a job is planned for, and which processes share one, as its resource plan divides them.

A machine without GPUs is one device, whose memory all processes share.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hyperparameters import Hyperparameters
from .resource_plan import plan

GPU_SHARE = 0.92
"""Part of a GPU's memory that is planned with: the allocator loses some to fragments, the driver takes some."""
RUNTIME = {("learner", True): 2**30, ("learner", False): 2**29, ("rollout", True): 2**31, ("rollout", False): 2**30}
"""Bytes of a process by (role, on a GPU), whatever the model: libraries, CUDA context, workspaces, captured graphs.
Estimates, not measured on GPUs."""


@dataclass(frozen=True, slots=True)
class Devices:
    """`count` GPUs of `memory` bytes each, in one machine; or, where not `gpu`, a machine with that much main
    memory."""

    count: int
    memory: int
    gpu: bool

    @property
    def usable(self) -> int:
        """Bytes of one device that a plan may fill."""
        return int(self.memory * GPU_SHARE) if self.gpu else self.memory

    def __str__(self) -> str:
        size = f"{self.memory / 2**30:.4g} GiB"
        if not self.gpu:
            return f"a machine of {size}"
        return f"{self.count} GPU{'' if self.count == 1 else 's'} of {size}"


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """The processes on each of `devices` devices that are filled alike."""

    devices: int
    ranks: int
    workers: int
    """Rollout workers; those whose engine is split over several devices count on each of them."""
    part: float = 1.0
    """Of a GPU, that each of its processes has."""

    @property
    def name(self) -> str:
        """Who is there, in words."""
        learner = "" if not self.ranks else "learner" if self.ranks == 1 else f"{self.ranks} learner ranks"
        rollout = "" if not self.workers else "rollout" if self.workers == 1 else f"{self.workers} rollout workers"
        return " + ".join(filter(None, (learner, rollout)))


def loads(settings: Hyperparameters, devices: Devices) -> list[DeviceLoad]:
    """The fullest devices of each kind. Raises `InvalidRequest` where there are fewer GPUs than the processes need."""
    ranks, workers = settings.learner_ranks, settings.rollout_workers
    if not devices.gpu:
        return [DeviceLoad(1, ranks, workers)]
    enough_cores = float(devices.count * (ranks + workers))
    resources = plan(settings, [{"CPU": enough_cores, "GPU": float(devices.count)}])
    of_rank, of_worker = resources.gpus(0), resources.gpus(ranks)
    alone = [] if of_rank < 1 else [DeviceLoad(ranks, 1, 0)]
    alone += [] if of_worker < 1 else [DeviceLoad(workers * settings.tensor_parallel_size, 0, 1)]
    return alone + _shared(of_rank < 1, workers if of_worker < 1 else 0, min(of_rank, of_worker))


def _shared(learner: bool, workers: int, part: float) -> list[DeviceLoad]:
    """GPUs whose processes have a `part` each: the learner's, and those of workers alone."""
    if not workers:
        return []
    together = round(1 / part)
    beside = min(workers, together - 1) if learner else 0
    gpus = -(-(workers + learner) // together)
    found = [DeviceLoad(1, 1, beside, part)] if learner else []
    if workers > beside:
        found.append(DeviceLoad(gpus - learner, 0, min(workers, together), part))
    return found
