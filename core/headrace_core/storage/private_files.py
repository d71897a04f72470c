"""Files and folders that other users of this machine can neither read nor put in place of ours.

Shared memory and the temporary folder are everybody's, and the names that we use there can be foreseen: who comes first
owns what bears them. So a folder is made for its user alone, and nothing is read from one that another may write to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make(folder: Path) -> None:
    """For this user alone, unless it is there; raises `PermissionError` where it is, and is not ours (`check`)."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check(folder)


def check(*paths: Path) -> None:
    """Raises `PermissionError` unless each is ours, or root's: no link, of nobody else, and not for others to write."""
    for path in paths:
        found = path.lstat()
        wrong = (
            "is a link"
            if stat.S_ISLNK(found.st_mode)
            else f"belongs to user {found.st_uid}, and this process runs as {os.geteuid()}"
            if found.st_uid not in (os.geteuid(), 0)
            else "can be written to by other users"
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            else None
        )
        if wrong is not None:
            raise PermissionError(f"{path} {wrong}: remove it, or make it this user's alone (chown, chmod go-w)")
