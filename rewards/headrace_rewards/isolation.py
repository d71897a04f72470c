"""What holds a process that runs a user's code. The one place where a stronger sandbox is put in.

    service:  command(…)      what to execute, with which environment, in which folder
    host:     confine(…)      before any of the user's code runs
              allow_cpu(…)    before each unit of work

Held here: none of the service's environment variables is visible; the process leads a session and a process group of
its own, so that it can be ended with its children; it dies with the service; memory, open files, file sizes and
processor time are limited; no core dump is written. Not held here: reading files, opening sockets, leaving the group.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ")
_PR_SET_PDEATHSIG = 1


class Limits(msgspec.Struct, frozen=True):
    """What one host process may use."""

    start_seconds: float = 60.0
    """Until the user's file is imported; importing torch takes ten on a slow machine."""
    memory_bytes: int = 4 << 30
    """Address space."""
    open_files: int = 256
    file_bytes: int = 64 << 20
    """Size of any one file."""
    output_bytes: int = 1 << 20
    """What it may print while it scores one unit."""
    cpu_per_second: float = 4.0
    """Processor seconds for each second of its time limit (threads add up)."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a host process is started."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path


def command(scratch: Path) -> Command:
    """The host's command line. `scratch` is its working, home and temporary folder.

    `-P` keeps the working folder off the import path, `-B` keeps byte code out of the user's folder, `-u` keeps what it
    prints from being lost in a crash.
    """
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"HOME": str(scratch), "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    argv = [sys.executable, "-P", "-B", "-u", "-m", "headrace_rewards.host", str(os.getpid())]
    return Command(argv, env, scratch)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent` ends, even in the midst of an endless loop.

    Linux sends the signal when the *thread* that started this process ends: hosts are started from a thread that lives
    as long as the service. A parent that died before the call is noticed by its number.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(0)


def confine(limits: Limits) -> None:
    """Limit this process. A limit that is already lower stays."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)


def allow_cpu(seconds: float, limits: Limits) -> None:
    """Grant processor time for the next `seconds` of work, from now on; SIGXCPU ends a process that takes more.

    Moved forward from unit to unit, since a process scores for as long as a job runs. It also ends a process whose
    leftover threads burn a core while it should be idle.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    wanted = int(used + seconds * limits.cpu_per_second) + 10
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value, value))
