"""Files and folders that are there whole or not at all: written beside their place, then moved there in one rename.

    .partial ─► written ─► renamed to its final name
        └─ an error: removed; a killed process leaves it, under a name that nobody takes for a complete one

A folder of many files has a manifest, which says what belongs to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import msgspec

PARTIAL = ".partial"
"""After the name of what is being written."""
MANIFEST = "manifest.json"
OLD_SECONDS = 3600.0
"""What a gateway is writing was written to in less: an upload is copied from the disk, a task has its time limit."""

Description = TypeVar("Description")


class Manifest(msgspec.Struct, Generic[Description], frozen=True):
    """What a folder of one policy version holds; written last."""

    version: Annotated[int, msgspec.Meta(ge=0)]
    files: Annotated[dict[str, Description], msgspec.Meta(min_length=1)]
    """By path within the folder, each with what must be true of it."""

    def write(self, folder: Path) -> None:
        """Write it to the folder, as the last of its files."""
        (folder / MANIFEST).write_bytes(msgspec.json.encode(self))


@contextmanager
def written_whole(final: Path, partial: Path | None = None) -> Iterator[Path]:
    """Gives the path to write a file or a folder to. It gets its final name when the block ends; an error removes it.

    A file that is there is replaced; a folder that is there and not empty is an `OSError`. `partial`: another path in
    the same file system. Without it, `final` with `PARTIAL`; what a process that died has left there is removed first.
    """
    if partial is None:
        partial = final.with_name(final.name + PARTIAL)
        remove(partial)
    try:
        yield partial
        os.replace(partial, final)
    except BaseException:
        _discard(partial)
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there. Raises `OSError` where that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _discard(path: Path) -> None:
    """What cannot be removed stays: the error that led here is the one to tell."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
