"""Folders for sockets, in /tmp, because the path of a unix socket is limited to 107 bytes, and that of a data folder is
not.

    LockedFolder ──► /tmp/headrace-<kind>-…/held, locked for as long as this process lives
    the next folder of the kind ──► removes folders without a lock, whose processes were killed

Invariant: a file named `held` is locked before it gets that name, so that one without a lock belongs to no live
process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import IO

_ROOT = Path("/tmp")
_HELD = "held"


class LockedFolder:
    """A folder at `path` that exists until `remove`, or this process's end. `kind`: a short word for its name."""

    def __init__(self, kind: str) -> None:
        prefix = f"headrace-{kind}-"
        _sweep(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=_ROOT))
        unnamed = self.path / f".{_HELD}"
        held = unnamed.open("w")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(os.getpid(), file=held, flush=True)
        unnamed.rename(self.path / _HELD)
        self.remove = weakref.finalize(self, _remove, self.path, held)
        """Remove the folder with its content. Idempotent; also called at the end of the process."""


def _remove(folder: Path, held: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    held.close()


def _sweep(prefix: str) -> None:
    for folder in _ROOT.glob(f"{prefix}*"):
        try:
            with (folder / _HELD).open() as held:
                if _is_ours(folder):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # locked, another user's, or not such a folder
            continue


def _is_ours(folder: Path) -> bool:
    """Whether the folder is this user's: any user can create files and links in /tmp."""
    return not folder.is_symlink() and folder.stat().st_uid == os.getuid()
