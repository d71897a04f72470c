"""A job's memory before it starts: what each device holds, part by part.

    config.json ─► ModelShape ─┐
    hyperparameters ───────────┼─► memory_plan   bytes by device and part
    Devices ───────────────────┘

Where the next version does not fit beside a running engine, it is counted on the host, as the engine would stage it
there.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..config.hyperparameters import Hyperparameters
from .devices import RUNTIME, DeviceLoad, Devices, loads
from .learner_memory import FLOAT32, Parts, learner_parts, state_bytes
from .model_shape import ModelShape, numbers
from .rollout_memory import CACHE, STAGING, cache_tokens, number_bytes, rollout_parts, staged_on_host

_VERSIONS = 3
"""Policy versions that the weight store has at once."""
_GENERATIONS = 2
"""Snapshots of the learner's state."""


class DeviceMemory(msgspec.Struct, frozen=True):
    """What each of some devices holds, in bytes."""

    processes: str
    devices: int
    """How many devices are filled alike."""
    parts: dict[str, int]
    """By "process: part"."""
    total: int
    usable: int

    @property
    def fits(self) -> bool:
        """Whether the parts fit together."""
        return self.total <= self.usable

    @property
    def stages_on_host(self) -> bool:
        """Whether an engine is there, and its next version is not."""
        return f"rollout: {CACHE}" in self.parts and f"rollout: {STAGING}" not in self.parts


class MemoryPlan(msgspec.Struct, frozen=True):
    """A job's memory, computed; nothing of it is measured."""

    parameters: int
    """Numbers of the model; tied ones count once."""
    trained: int
    """Numbers that the policy's optimizer changes."""
    gpu: bool
    devices: list[DeviceMemory]
    kv_cache_tokens: int
    """Of one rollout worker."""
    host: dict[str, int]
    """Bytes of shared memory of all nodes together, at most: policy versions, snapshots."""
    chosen: dict[str, Any] = {}
    """Defaults that were changed so that the job fits or the device is used."""

    @property
    def fits(self) -> bool:
        """Whether every device has room."""
        return all(device.fits for device in self.devices)


def memory_plan(model: ModelShape, settings: Hyperparameters, devices: Devices) -> MemoryPlan:
    """The bytes on each device. Raises `InvalidRequest` where processes that need a GPU of their own have none."""
    trained = model.parameters() if settings.lora_rank is None else model.adapters(settings.lora_rank)
    places = loads(settings, devices)
    caches = [rollout_parts(model, settings, devices, load)[CACHE] for load in places if load.workers]
    return MemoryPlan(
        parameters=numbers(model.parameters()),
        trained=numbers(trained),
        gpu=devices.gpu,
        devices=[_device(model, settings, devices, load) for load in places],
        kv_cache_tokens=cache_tokens(model, settings, min(caches), devices.gpu),
        host=_host(model, settings, devices.gpu),
    )


def _compute_bytes(settings: Hyperparameters, gpu: bool) -> int:
    precision = settings.learner_precision or ("bfloat16" if gpu else "float32")
    return {"bfloat16": 2, "float32": FLOAT32}[precision]


def _device(model: ModelShape, settings: Hyperparameters, devices: Devices, load: DeviceLoad) -> DeviceMemory:
    """With the next version staged on the device, or on the host where it does not fit there."""
    whole = filled_device(model, settings, devices, load)
    if whole.fits or not staged_on_host(settings, devices.gpu):
        return whole
    return without_staging(whole)


def filled_device(model: ModelShape, settings: Hyperparameters, devices: Devices, load: DeviceLoad) -> DeviceMemory:
    """With the next version staged on the device, whether that fits or not."""
    parts: Parts = {}
    engine_processes = load.workers * (1 if devices.gpu else settings.tensor_parallel_size)
    of_roles = (
        ("learner", load.ranks, learner_parts(model, settings, _compute_bytes(settings, devices.gpu))),
        ("rollout", engine_processes, rollout_parts(model, settings, devices, load)),
    )
    for role, processes, of_one in of_roles:
        if processes:
            parts |= {f"{role}: {name}": size * processes for name, size in of_one.items() if size}
            parts[f"{role}: runtime"] = RUNTIME[role, devices.gpu] * processes
    return DeviceMemory(load.name, load.devices, parts, sum(parts.values()), devices.usable)


def without_staging(device: DeviceMemory) -> DeviceMemory:
    """With the next version staged on the host."""
    parts = {name: size for name, size in device.parts.items() if name != f"rollout: {STAGING}"}
    return msgspec.structs.replace(device, parts=parts, total=sum(parts.values()))


def _host(model: ModelShape, settings: Hyperparameters, gpu: bool) -> dict[str, int]:
    published = (
        numbers(model.parameters()) * number_bytes(gpu)
        if settings.lora_rank is None
        else numbers(model.adapters(settings.lora_rank)) * FLOAT32
    )
    found = {"policy versions": _VERSIONS * published}
    if settings.snapshot_every:
        ranks = settings.learner_ranks
        state = ranks * state_bytes(model, settings)
        found["snapshots"] = _GENERATIONS * state * ranks // max(1, ranks - 1)  # with parity over the ranks
    return found
