"""What takes measurements: a file of JSON lines, a TensorBoard event file, a run at Weights & Biases.

Promises of a `Sink`: what `write` was given is out when `flush` has returned; a file that is cut back to what a `flush`
answered holds what was written before it, and nothing else. So an exporter that died goes on without a gap, and without
writing anything twice.
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
        """Take one entry, also as scalars."""
        ...

    def flush(self) -> int:
        """The size in bytes of what is out; 0 for what is no file."""
        ...

    def close(self) -> None:
        """All is out afterwards."""
        ...


def opened_at(path: Path, size: int) -> IO[bytes]:
    """The file, cut to `size`, to be written on; made where `size` is 0."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file
