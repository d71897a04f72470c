"""The working folders of reward code. Each belongs to the service process that created it.

    ScratchFolder ──► $TMPDIR/headrace-reward-…, locked until `remove`, or until its creator ends
    the next one  ──► removes folders without a lock: their creators were killed

Within a namespace the folder is a file system of its own, which ends with its processes; outside remains an empty
folder that none of them can reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

from .removal import remove

_PREFIX = "headrace-reward-"
_YOUNG_SECONDS = 60.0
"""A folder younger than this is left alone: its creator may not have locked it yet."""


class ScratchFolder:
    """Creates a new working folder, at `path`, and removes abandoned ones."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock: int | None = _open(self.path)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Remove the folder and everything in it. Idempotent."""
        remove(self.path)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close the inherited lock in a forked child, so that the child does not keep the folder locked."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, another user's, or just removed by another process
            opened = _open(folder)
            try:
                if _may_be_ours(opened):
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)
            finally:
                os.close(opened)


def _may_be_ours(opened: int) -> bool:
    """Whether an abandoned folder may be removed: it is old enough, and owned by this user. Root may remove any, since
    it gives the folders to the user that the code runs as."""
    found = os.fstat(opened)
    return os.getuid() in (found.st_uid, 0) and time.time() - found.st_mtime > _YOUNG_SECONDS
