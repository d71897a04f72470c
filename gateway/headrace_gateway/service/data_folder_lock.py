"""Locks the data folder for one server. The system releases the lock when its holder dies, however it dies.

Invariant: no other user of the machine can read or change anything in the data folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace_core.errors import InvalidState, Unavailable
from headrace_core.storage.disk_space import require_space

_LOCK = "headrace.lock"
_OURS = ("files", "jobs", "redis")
START_BYTES = 256 * 1024
"""Free space without which nothing is started. A new Redis that runs out of it while it makes its first files leaves
some that no later one accepts."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create and lock the folder. Raises an `InvalidState` that names the process with the lock, `DiskFull` if too
    little is free in it to start, and another `Unavailable` if it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in _OURS:
            _for_us_alone(folder / name)
        opened = (folder / _LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise Unavailable(
            f"the data folder {folder} cannot be used: {error.strerror} ({error.filename}): choose one that this user "
            "may write to, with --data-dir or HEADRACE_DATA_DIR"
        ) from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip()
            raise InvalidState(
                f"the data folder {folder} is used by another headrace server, process {holder}: "
                "stop that one, or choose another folder with --data-dir"
            ) from error
        with require_space(folder, START_BYTES):
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        yield


def _for_us_alone(folder: Path) -> None:
    """Create the folder, or remove other users' access to it. Raises `InvalidState` if it belongs to another user."""
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077:
        try:
            folder.chmod(0o700)
        except PermissionError as error:
            raise InvalidState(
                f"{folder} can be read by others, and is not this user's: make it so (chown), or choose another folder "
                "with --data-dir"
            ) from error
