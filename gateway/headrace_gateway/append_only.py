"""Redis' append-only file, read as far as it is whole: to say where damage begins, and what would mend it.

    *3\\r\\n  $3\\r\\nSET\\r\\n  $1\\r\\na\\r\\n  $1\\r\\nb\\r\\n      one command after the other, of counted parts

After a rewrite the file begins with a snapshot in another format, whose end only Redis finds: then no place is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from headrace_core.errors import Damaged

AOF = "appendonly.aof"
_LONGEST_COUNT = 32
"""Bytes of a line that says how many parts or bytes follow."""


def whole_bytes(file: Path) -> int | None:
    """How many bytes of it, from its beginning, are whole commands; None where it begins with a snapshot."""
    with file.open("rb") as lines:
        if lines.read(5) == b"REDIS":
            return None
        lines.seek(0)
        whole = 0
        while _command(lines):
            whole = lines.tell()
    return whole


def damaged(file: Path) -> Damaged:
    """The error of a file that Redis does not read, with the remedy."""
    size, whole = file.stat().st_size, whole_bytes(file)
    said = f"Redis' append-only file {file} is damaged"
    if whole is None:
        remedy = f"put a copy of yours in its place, or, after copying it, run `redis-check-aof --fix {file}`"
    else:
        said += f" after {whole} of its {size} bytes"
        cut = f"truncate -s {whole} {file}"
        remedy = f"put a copy of yours in its place, or, after copying it, run `{cut}`, which loses what came later"
    return Damaged(f"{said}; nothing was changed. To go on, {remedy}")


def _command(lines: BinaryIO) -> bool:
    """Step over one; False where there is no whole one."""
    parts = _count(lines, b"*")
    if parts is None or parts < 1:
        return False
    for _ in range(parts):
        length = _count(lines, b"$")
        if length is None:
            return False
        lines.seek(length, 1)
        if lines.read(2) != b"\r\n":
            return False
    return True


def _count(lines: BinaryIO, mark: bytes) -> int | None:
    line = lines.readline(_LONGEST_COUNT)
    digits = line[1:-2]
    return int(digits) if line[:1] == mark and line[-2:] == b"\r\n" and digits.isdigit() else None
