"""One server a data folder: a lock that the system gives back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace_core.errors import InvalidState

_LOCK = "headrace.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it. Raises `InvalidState`, naming the process that has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise InvalidState(
                f"the data folder {folder} is used by another headrace server, process {lock.read().strip()}: "
                "stop that one, or choose another folder with --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
