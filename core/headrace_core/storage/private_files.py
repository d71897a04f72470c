"""Files and folders that other users of this machine can neither read nor replace.

Any user can write to shared memory and the temporary folder, and the names used there are predictable, so that another
user could create them first. So folders are created for their user alone, and nothing is read from a folder that
another user can write to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make(folder: Path) -> None:
    """Create `folder` for this user alone, unless it exists. Raises `PermissionError` if it exists and `check`
    fails."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check(folder)


def check(*paths: Path) -> None:
    """Raises `PermissionError` unless each path belongs to this user or root, is not a symbolic link, and cannot be
    written to by others."""
    for path in paths:
        status = path.lstat()
        problem = (
            "is a link"
            if stat.S_ISLNK(status.st_mode)
            else f"belongs to user {status.st_uid}, and this process runs as {os.geteuid()}"
            if status.st_uid not in (os.geteuid(), 0)
            else "can be written to by other users"
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            else None
        )
        if problem is not None:
            raise PermissionError(f"{path} {problem}: remove it, or make it this user's alone (chown, chmod go-w)")
