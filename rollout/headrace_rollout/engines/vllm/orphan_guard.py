"""Kills vLLM's processes when the process that started them dies, however it dies.

    this process ── a pipe, held open ──► guard process: reads it ── end of file ──► SIGKILL to all with the mark
         └─► vLLM's processes, and their children: started with the mark in their environment

vLLM's engine process does not notice that its parent was killed, and would keep its memory for ever. This module is
also the guard's program; it is run by its path, and imports nothing else of Headrace.

Invariant: no process with the mark outlives the guard, and no shared memory of vLLM remains. The shared memory of a
process can be found only while it lives, so the guard looks every two seconds.
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
_PROC = Path("/proc")
_RELEASE_SECONDS = 60.0
_WATCH_SECONDS = 2.0
_LOOKS, _LOOK_SECONDS = 50, 0.1
"""How often the guard looks for marked processes to kill: one that was just being started is found a little later."""


class OrphanGuard:
    """The guard of one engine. Create it before the engine, whose processes must get `environment`."""

    def __init__(self) -> None:
        mark = secrets.token_hex(12)
        # SPT_NOENV: else setproctitle, by which vLLM names its processes, would overwrite their environment.
        self.environment = {MARK: mark, "SPT_NOENV": "1"}
        command = [sys.executable, "-I", "-S", __file__, mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env={})

    def release(self) -> None:
        """Kill the marked processes that remain, and end the guard. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_RELEASE_SECONDS)


def main(mark: str) -> None:
    """Wait for the end of stdin, then kill all processes with the mark and remove their shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    entry, segments = f"{MARK}={mark}".encode(), set[str]()
    while not select.select([sys.stdin], [], [], _WATCH_SECONDS)[0]:  # nothing is written to it: readable means closed
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


def is_shared_segment(name: str) -> bool:
    """Whether a mapped file is shared memory of vLLM's: a message queue, under Python's name for it, or the buffer by
    which the CPU processes of one engine exchange activations."""
    return name.startswith("/dev/shm/psm_") or (name.startswith("/dev/shm/") and "-cpushm" in name)


def _marked(entry: bytes) -> list[Path]:
    return [process for process in _PROC.glob("[0-9]*") if entry in _read(process / "environ")]


def _shared_by(processes: list[Path]) -> set[str]:
    maps = (_read(process / "maps").decode(errors="replace") for process in processes)
    names = (line.split(" ")[-1] for text in maps for line in text.splitlines())
    return {name for name in names if is_shared_segment(name)}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has ended, or belongs to another user
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended by itself
        return


if __name__ == "__main__":
    main(sys.argv[1])
