"""Parses Redis' append-only files, to report where damage begins and what repairs it.

    appendonlydir/appendonly.aof.manifest     names the other files, in the order in which they are read
                  ….1.base.rdb                a snapshot of the data at the last rewrite
                  ….1.incr.aof                the commands since then:
        *3\\r\\n  $3\\r\\nSET\\r\\n  $1\\r\\na\\r\\n  $1\\r\\nb\\r\\n      with the lengths of its parts

Only Redis can parse a snapshot, so the error for a damaged one gives no position.

Invariant: files without their manifest are an error: Redis would take the folder for a new one, and overwrite them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from headrace_core.errors import Damaged

FOLDER, AOF = "appendonlydir", "appendonly.aof"
MANIFEST = f"{AOF}.manifest"
_SNAPSHOTS = (b"REDIS", b"VALKEY")
_MAX_COUNT_BYTES = 32
"""Maximum length of a line that gives a number of parts or bytes."""
_MAX_DIGITS = 12
"""Maximum digits of such a number: no file is so large that it could hold a larger one."""
_NAMED = re.compile(
    r"(?:Bad file format|Unrecoverable error|Unexpected end of file) reading the append only file (\S+?):"
)
_MISSING = re.compile(r"Unable to obtain the AOF file (\S+) length|The AOF file (\S+) doesn't exist")
_MANIFEST_FAULT = "FATAL AOF MANIFEST FILE ERROR"
_SNAPSHOT_FAULTS = (
    "Internal error in RDB reading",
    "Short read or OOM loading DB",
    "Wrong signature trying to load DB",
)
_BASE = re.compile(r"^file (\S+) seq \d+ type b\b", re.MULTILINE)


def check(folder: Path) -> None:
    """Call it before Redis starts on `folder`. Raises `Damaged` if there are append-only files without a manifest."""
    manifest = folder / FOLDER / MANIFEST
    if not manifest.exists() and any((folder / FOLDER).glob(f"{AOF}.*")):
        raise _damaged(manifest, "is missing, though files that it would name are there")


def damage(folder: Path, output: str) -> Damaged | None:
    """The error, with its remedy, for damage that a server reported in its `output`; None if it ended for another
    reason."""
    files = folder / FOLDER
    if match := _NAMED.search(output):
        return _damaged_commands(files / match[1])
    if match := _MISSING.search(output):
        return _damaged(files / (match[1] or match[2]), "is missing")
    if _MANIFEST_FAULT in output:
        return _damaged(files / MANIFEST, "is damaged")
    if any(words in output for words in _SNAPSHOT_FAULTS):
        base = _BASE.search((files / MANIFEST).read_text(errors="replace"))
        return _damaged(files / (base[1] if base else MANIFEST), "is damaged")
    return None


def whole_bytes(file: Path) -> int | None:
    """Number of bytes, from the beginning, that are complete commands; None if the file begins with a snapshot."""
    with file.open("rb") as lines:
        if lines.read(max(map(len, _SNAPSHOTS))).startswith(_SNAPSHOTS):
            return None
        lines.seek(0)
        whole = 0
        while _command(lines):
            whole = lines.tell()
    return whole


def _damaged_commands(file: Path) -> Damaged:
    size, whole = file.stat().st_size, whole_bytes(file)
    if whole is None:
        return _damaged(file, "is damaged")
    cut = f"truncate -s {whole} {file}"
    return _damaged(
        file,
        f"is damaged after {whole} of its {size} bytes",
        f", or, after copying {file.parent}, run `{cut}`, which loses what came later",
    )


def _damaged(file: Path, how: str, other_remedy: str = "") -> Damaged:
    return Damaged(
        f"Redis' append-only file {file} {how}; nothing was changed. To go on, put a copy of yours in the place of the "
        f"folder {file.parent}{other_remedy}"
    )


def _command(lines: BinaryIO) -> bool:
    """Read past one command. Returns False if there is no complete one."""
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
    line = lines.readline(_MAX_COUNT_BYTES)
    digits = line[1:-2]
    sound = line[:1] == mark and line[-2:] == b"\r\n" and digits.isdigit() and len(digits) <= _MAX_DIGITS
    return int(digits) if sound else None
