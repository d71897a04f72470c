"""Small disks that a test can fill."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_PAGE = 4096
"""Bytes in which such a disk counts."""


def fill(folder: Path, leave: int) -> Path:
    """Creates a file, which is returned, that leaves fewer than `leave` + 4096 bytes of the disk free."""
    file = folder / "in-the-way"
    with file.open("wb", buffering=0) as written, suppress(OSError):
        while shutil.disk_usage(folder).free >= leave + _PAGE:
            written.write(bytes(_PAGE))
    return file


@contextmanager
def own_disk(folder: Path, mib: int) -> Iterator[Path]:
    """Creates `folder` on a disk of `mib` MiB. Skips the test if no disk can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk of its own: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
