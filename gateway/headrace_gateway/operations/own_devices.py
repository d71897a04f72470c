"""What this machine has for a job to run on, as the memory plan wants it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from headrace_core.planning.devices import Devices

from .cache_memory import main_memory

_MIB = 2**20
_ANSWER_SECONDS = 20.0
_SMI = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")


def own_devices() -> Devices | None:
    """This machine's GPUs, or its main memory where it has none; None where it has GPUs that cannot be asked.

    As Ray does, it counts those that CUDA_VISIBLE_DEVICES leaves.
    """
    most = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if most == 0 or not Path("/dev/nvidiactl").exists():
        return Devices(1, main_memory(), gpu=False)
    program = shutil.which("nvidia-smi")
    return None if program is None else listed_gpus(program, most)


def visible_gpus(variable: str | None) -> int | None:
    """How many GPUs CUDA_VISIBLE_DEVICES names; None where it is not set. CUDA ignores what comes after a -1."""
    if variable is None:
        return None
    named = [name.strip() for name in variable.split(",")]
    return next((count for count, name in enumerate(named) if name in ("", "-1")), len(named))


def listed_gpus(program: str, most: int | None) -> Devices | None:
    """The GPUs that nvidia-smi (`program`) lists, `most` at most; None if it lists none or fails.

    GPUs of different sizes count as the smallest.
    """
    try:
        asked = subprocess.run([program, *_SMI], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
        sizes = [int(line) * _MIB for line in asked.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):  # `headrace doctor` says what is wrong with it
        return None
    return Devices(len(sizes[:most]), min(sizes), gpu=True) if sizes else None
