"""Processes that do not outlive the process that started them, however that ends.

python -m headrace_lab.services.child_processes PARENT COMMAND…    executes COMMAND, which ends when PARENT (a pid) ends
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """A command that executes `command`; the kernel sends it SIGTERM when the thread that started it ends (prctl(2)).

    A `finally` is not enough, because SIGTERM and SIGKILL skip it, and the service would go on training.
    """
    return [sys.executable, "-m", "headrace_lab.services.child_processes", str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`. Does not return."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the process that asked for it has ended")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
