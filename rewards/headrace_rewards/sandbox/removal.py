"""Removes a folder that a user's code wrote into: whatever its depth, its names and its modes.

`shutil.rmtree` goes down by calling itself, and its paths grow with the depth. Here every folder is emptied by moving
the folders in it up to the top, so that two open folders do, at any depth.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: Path) -> None:
    """The folder and all in it; no link is followed. What may not be removed stays, and is no error."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        top = os.open(folder, _FLAGS)
        try:
            _empty(top)
        finally:
            os.close(top)
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _empty(top: int) -> None:
    moved, unknown = 0, secrets.token_hex(8)  # whoever wrote the folder could have taken a name that they know
    open_names = _taken_apart(top)
    while open_names:
        name = open_names.pop()
        try:
            below = _opened(top, name)
        except OSError:  # another's
            continue
        try:
            for inner in _taken_apart(below):
                up = f".headrace-removed-{unknown}-{moved}"
                moved += 1
                with contextlib.suppress(OSError):
                    os.rename(inner, up, src_dir_fd=below, dst_dir_fd=top)
                    open_names.append(up)
        finally:
            os.close(below)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)


def _taken_apart(place: int) -> list[str]:
    """Removes the files of a folder; the names of the folders in it."""
    with os.scandir(place) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place)
    return [name for name, is_folder in found if is_folder]


def _opened(top: int, name: str) -> int:
    """Its owner may have taken the rights to it from themselves."""
    with contextlib.suppress(OSError):
        return os.open(name, _FLAGS, dir_fd=top)
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)
    return os.open(name, _FLAGS, dir_fd=top)
