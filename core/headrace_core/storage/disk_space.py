"""Checks for free disk space (or shared memory) before a large write, and a named error when a disk is full.

`DiskFull` names the folder, the bytes needed and the bytes free. The caller must remove what it had written already.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MESSAGE = "No space left on device"
"""The message of libraries in other languages, whose errors carry no errno."""


def check_space(folder: Path, needed: int) -> None:
    """Raises `DiskFull` if fewer than `needed` bytes are free in `folder`, or where it will be created."""
    if _free(folder) < needed:
        raise _full(folder, needed)


@contextmanager
def require_space(folder: Path, needed: int = 0) -> Iterator[None]:
    """Context of a write of about `needed` bytes to `folder` (0: unknown).

    Raises `DiskFull` before the write if there is too little space, and in place of an error of a disk that became
    full.
    """
    check_space(folder, needed)
    try:
        yield
    except Exception as error:
        if _is_of_a_full_disk(error):
            raise _full(folder, needed) from error
        raise


def _is_of_a_full_disk(error: BaseException) -> bool:
    """Whether the error, or one that it wraps, says that the disk is full."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _MESSAGE in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _free(folder: Path) -> int:
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def _full(folder: Path, needed: int) -> DiskFull:
    free = _free(folder)
    what = f"{needed:,} bytes are needed" if needed else "more is needed"
    return DiskFull(f"no room in {folder}: {what}, {free:,} are free")
