"""Checks that the KV caches of a job fit into the machine's memory, and that a job that needs GPUs finds some, so that
a job that cannot run is refused at submission, and not after the engine has been starting for a minute.

It checks the main memory of the single machine of an embedded Ray. With GPUs or other nodes, the engine reports too
large a cache when it starts.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest

_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIB = 2**30


def check_caches(job: Hyperparameters, service: Settings, param: str) -> None:
    """Raises `InvalidRequest` if the caches do not fit, or need GPUs; its `param` is `param` and the setting's name."""
    on_a_cluster = (service.ray_address or os.environ.get("RAY_ADDRESS")) is not None
    if on_a_cluster or Path("/dev/nvidiactl").exists():
        return
    if job.quantization is not None:
        raise InvalidRequest(
            f"quantization {job.quantization} is computed by GPUs, and this machine has none: leave it out",
            param=f"{param}.quantization",
        )
    if job.kv_cache_gib is None:
        return
    needed = job.kv_cache_gib * job.tensor_parallel_size * job.rollout_workers
    there = main_memory() / _GIB
    if needed >= there:
        workers = "" if job.rollout_workers == 1 else f" for each of {job.rollout_workers} rollout workers"
        raise InvalidRequest(
            f"kv_cache_gib is {job.kv_cache_gib:g}{workers}, and the machine has {there:.1f} GiB in all, which models "
            "and the learner need, too: lower it",
            param=f"{param}.kv_cache_gib",
        )


def main_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the container's limit."""
    whole = int(psutil.virtual_memory().total)
    try:
        return min(whole, int(_GROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit: the file is missing, or says `max`
        return whole
