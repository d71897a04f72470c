"""The interface of export targets: a file of JSON lines, a TensorBoard event file, a run at Weights & Biases.

Contract of a `Sink`: when `flush` returns, everything passed to `write` is stored; a file truncated to the size that
`flush` returned holds exactly what was written before that call. So an exporter that died continues without gaps and
duplicates.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from headrace_core.jobs.history import Kind

from .series import Point


class SinkEntry(msgspec.Struct, frozen=True):
    """One entry of a job's measurements."""

    number: int
    kind: Kind
    data: dict[str, Any]


class Sink(Protocol):
    def write(self, entry: SinkEntry, point: Point) -> None:
        """Write one entry; `point` has its scalars."""
        ...

    def flush(self) -> int:
        """Store everything that was written; returns the file's size in bytes, 0 for a sink without a file."""
        ...

    def close(self) -> None:
        """Store everything that was written, and close."""
        ...


def opened_at(path: Path, size: int) -> IO[bytes]:
    """Open the file for appending, truncated to `size` bytes; creates it if `size` is 0."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file
