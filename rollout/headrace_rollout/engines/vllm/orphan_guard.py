"""Ends vLLM's processes when the process that started them dies, however it dies.

    this process ── a pipe, held open ──► guard, a process: reads it ── its end ──► SIGKILL to all with the mark
         └─► vLLM's processes, and theirs: started with the mark in their environment

vLLM's engine process does not notice that its parent was killed, and would keep its memory for good. Run as a program,
by its path and without anything else of ours, this module is the guard.

Invariant: none with the mark outlives the guard, and no memory that vLLM shared between them is left. What one of them
shares is known while it lives: the guard looks every two seconds, as one that was killed tells nothing any more.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "HEADRACE_ENGINE_MARK"
_PROC, _SHARED = Path("/proc"), "/dev/shm/psm_"
_RELEASE_SECONDS = 60.0
_WATCH_SECONDS = 2.0
_LOOKS, _LOOK_SECONDS = 50, 0.1
"""One that is just being started is seen at a next look."""


class OrphanGuard:
    """Of one engine. Start it first; what then has `environment` is its."""

    def __init__(self) -> None:
        mark = secrets.token_hex(12)
        # SPT_NOENV: the name that vLLM gives its processes would else be written over their environment.
        self.environment = {MARK: mark, "SPT_NOENV": "1"}
        command = [sys.executable, "-I", "-S", __file__, mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env={})

    def release(self) -> None:
        """Nothing is left to guard: whatever is there still is ended now. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_RELEASE_SECONDS)


def main(mark: str) -> None:
    """Wait for the end of stdin, then end everything with the mark."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    entry, segments = f"{MARK}={mark}".encode(), set[str]()
    while not select.select([sys.stdin], [], [], _WATCH_SECONDS)[0]:  # nobody writes to it: what comes is its end
        segments |= _shared_by(_marked(entry))
    for _ in range(_LOOKS):
        marked = _marked(entry)
        if not marked:
            break
        segments |= _shared_by(marked)
        for process in marked:
            _kill(int(process.name))
        time.sleep(_LOOK_SECONDS)
    for segment in segments:
        Path(segment).unlink(missing_ok=True)


def _marked(entry: bytes) -> list[Path]:
    return [process for process in _PROC.glob("[0-9]*") if entry in _read(process / "environ")]


def _shared_by(processes: list[Path]) -> set[str]:
    maps = (_read(process / "maps").decode(errors="replace") for process in processes)
    return {name for text in maps for line in text.splitlines() if (name := line.split(" ")[-1]).startswith(_SHARED)}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended, or is another user's
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself
        return


if __name__ == "__main__":
    main(sys.argv[1])
