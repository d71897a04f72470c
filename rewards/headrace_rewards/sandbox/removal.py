"""Removes a folder that a user's code wrote into, whatever the depth, names and permissions in it.

`shutil.rmtree` is recursive, and its paths grow with the depth. Here the folders in each folder are moved up to the
top, so that two open folders suffice at any depth.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: Path) -> None:
    """Remove the folder and everything in it, without following links. What cannot be removed is left, without
    error."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        top = os.open(folder, _FLAGS)
        try:
            _empty(top)
        finally:
            os.close(top)
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _empty(top: int) -> None:
    moved, unknown = 0, secrets.token_hex(8)  # random: the folder's author must not be able to occupy the names
    open_names = _remove_files(top)
    while open_names:
        name = open_names.pop()
        try:
            below = _open(top, name)
        except OSError:  # it belongs to another user
            continue
        try:
            for inner in _remove_files(below):
                up = f".headrace-removed-{unknown}-{moved}"
                moved += 1
                with contextlib.suppress(OSError):
                    os.rename(inner, up, src_dir_fd=below, dst_dir_fd=top)
                    open_names.append(up)
        finally:
            os.close(below)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)


def _remove_files(place: int) -> list[str]:
    """Remove the files of a folder; returns the names of its folders."""
    with os.scandir(place) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place)
    return [name for name, is_folder in found if is_folder]


def _open(top: int, name: str) -> int:
    """Open a folder, even if its permissions deny it to its own owner."""
    with contextlib.suppress(OSError):
        return os.open(name, _FLAGS, dir_fd=top)
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)
    return os.open(name, _FLAGS, dir_fd=top)
