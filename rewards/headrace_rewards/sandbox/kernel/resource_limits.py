"""How much one host may use. Limits of a single process are set here; `guard` watches the total of all processes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec


class ResourceLimits(msgspec.Struct, frozen=True):
    """What one host, with everything it starts, may use."""

    start_seconds: float = 60.0
    """Time until the user's code is loaded; importing torch takes ten seconds on a slow machine."""
    memory_bytes: int = 4 << 30
    """Address space of each process, and resident memory of all together."""
    processes: int = 64
    """Processes and threads at a time, the host's own included."""
    open_files: int = 256
    file_bytes: int = 64 << 20
    """Size of any one file."""
    scratch_bytes: int = 256 << 20
    """Total size of files in its scratch folder; enforced at level `isolated`, where the folder is a file system."""
    output_bytes: int = 1 << 20
    """Maximum output while it scores one unit."""
    cpu_per_second: float = 4.0
    """Processor seconds of one process for each second of a unit's time limit (threads add up); the guard counts."""
    cpu_seconds: float = 10.0
    """Processor seconds of one process in addition to that."""


def confine(limits: ResourceLimits, processes: int) -> None:
    """Limit this process and those it starts. A limit that is already lower stays."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # if the machine runs out of memory, it is killed first
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NPROC, processes)


def tasks_of(user: int) -> int:
    """Number of processes and threads of `user` now: `RLIMIT_NPROC` counts those of the user, not of a process."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += len(os.listdir(folder / "task"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is hidden by whoever mounted /proc
    return count


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value, value))
