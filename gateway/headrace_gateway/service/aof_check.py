"""Parses Redis' append-only files, to report where damage begins and what repairs it.

    appendonlydir/appendonly.aof.manifest     names the others, in the order in which they are read
                  ….1.base.rdb                all there was when the file was last rewritten: a snapshot
                  ….1.incr.aof                the commands since:
        *3\\r\\n  $3\\r\\nSET\\r\\n  $1\\r\\na\\r\\n  $1\\r\\nb\\r\\n      one after the other, of counted parts

Where a snapshot ends, only Redis finds: of one that is damaged, no place is named.

Invariant: files without their manifest are an error: Redis would take the folder for a new one, and write over them.
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
"""Bytes of a line that says how many parts or bytes follow."""
_MAX_DIGITS = 12
"""Of such a number: no file system goes to a place as far as a larger one, which is damaged."""
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
    """Before Redis starts on `folder`. Raises `Damaged` where there are files that no manifest names."""
    manifest = folder / FOLDER / MANIFEST
    if not manifest.exists() and any((folder / FOLDER).glob(f"{AOF}.*")):
        raise _damaged(manifest, "is missing, though files that it would name are there")


def damage(folder: Path, output: str) -> Damaged | None:
    """What a server that ended has `said` in its log, as an error with the remedy; None where it is another fault."""
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
    """How many bytes of it, from its beginning, are whole commands; None where it begins with a snapshot."""
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
    line = lines.readline(_MAX_COUNT_BYTES)
    digits = line[1:-2]
    sound = line[:1] == mark and line[-2:] == b"\r\n" and digits.isdigit() and len(digits) <= _MAX_DIGITS
    return int(digits) if sound else None
