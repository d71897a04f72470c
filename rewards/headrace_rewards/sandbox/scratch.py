"""The folders that reward code works in: outside of its process, each belongs to the process that made it.

    ScratchFolder ──► $TMPDIR/headrace-reward-…, locked for as long as its maker lives or until `remove`
    the next one  ──► removes those that nobody holds: their makers were killed

Within a namespace the folder is a file system of its own, which goes with its processes; what is left outside is an
empty folder, that none of them can reach.
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
"""One that was made in less may not be locked yet."""


class ScratchFolder:
    """A new one, at `path`."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held: int | None = _opened(self.path)
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """With all that is in it. Idempotent."""
        remove(self.path)
        self.let_go()

    def let_go(self) -> None:
        """Of a process that was forked: what it does does not hold the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # held; or another user's; or another process has just removed it
            opened = _opened(folder)
            try:
                if _may_be_ours(opened):
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)
            finally:
                os.close(opened)


def _may_be_ours(opened: int) -> bool:
    """Root gives the folder to the user that the code runs as."""
    found = os.fstat(opened)
    return os.getuid() in (found.st_uid, 0) and time.time() - found.st_mtime > _YOUNG_SECONDS
