"""Atomic writes of files and folders: written under a temporary name, then renamed to the final one.

    .partial ─► written ─► renamed to its final name
        └─ an error: removed; a killed process leaves it, under a name that no reader takes for complete

A folder of several files has a manifest that lists them.
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
"""Suffix of the name while a file or folder is being written."""
MANIFEST = "manifest.json"
ABANDONED_AFTER_SECONDS = 3600.0
"""A partial file of a gateway that was not modified for this long is abandoned: uploads are copied from the local disk,
and tasks have a time limit, so that a live writer is faster."""

Description = TypeVar("Description")


class Manifest(msgspec.Struct, Generic[Description], frozen=True):
    """Lists the files of a folder that holds one policy version; it is written last."""

    version: Annotated[int, msgspec.Meta(ge=0)]
    files: Annotated[dict[str, Description], msgspec.Meta(min_length=1)]
    """By path within the folder; the description (a size, say) is what a reader checks."""

    def write(self, folder: Path) -> None:
        """Write the manifest to `folder`; call it after all other files are written."""
        (folder / MANIFEST).write_bytes(msgspec.json.encode(self))


@contextmanager
def written_whole(final: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yields a path to write a file or folder to, and renames it to `final` when the block ends. On an error the path
    is removed.

    An existing file is replaced; an existing folder that is not empty raises `OSError`. `partial` is the path to use,
    in the same file system; by default `final` with the suffix `PARTIAL`, after removing what a killed process left
    there.
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
    """Delete a file or a folder, if it exists. Raises `OSError` if that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _discard(path: Path) -> None:
    """Delete `path` as far as possible, without an error: the error that led here is the one to report."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def sync(path: Path) -> None:
    """Sync a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
