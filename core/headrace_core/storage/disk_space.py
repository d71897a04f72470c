"""A disk, or a folder of shared memory, that takes no more: asked before a large write, and named when it says so.

`DiskFull` names the folder, the bytes that are needed and those that are free. Whoever writes removes what it had
written; here nothing is.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = "No space left on device"
"""By libraries that write through other languages, and keep the number to themselves."""


def check_room(folder: Path, needed: int) -> None:
    """Raises `DiskFull` where fewer than `needed` bytes are free for `folder`, or for where it will be made."""
    if _free(folder) < needed:
        raise _full(folder, needed)


@contextmanager
def require_space(folder: Path, needed: int = 0) -> Iterator[None]:
    """What is written within needs about `needed` bytes of `folder` (0: unknown). Raises `DiskFull`, before or in place
    of the error of a disk that became full."""
    check_room(folder, needed)
    try:
        yield
    except Exception as error:
        if _is_of_a_full_disk(error):
            raise _full(folder, needed) from error
        raise


def _is_of_a_full_disk(error: BaseException) -> bool:
    """Also where a library wrapped it."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _SAID in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _free(folder: Path) -> int:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _full(folder: Path, needed: int) -> DiskFull:
    free = _free(folder)
    what = f"{needed:,} bytes are needed" if needed else "more is needed"
    return DiskFull(f"no room in {folder}: {what}, {free:,} are free")
