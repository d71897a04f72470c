"""Where measurements go: a file of JSON lines, a TensorBoard event file, a run at Weights & Biases.

Promises of a `Sink`: what `write` was given is out when `flush` has returned; a file that is cut back to what a `flush`
answered holds what was written before it, and nothing else. So a follower that died goes on without a gap, and without
writing anything twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from headrace_core.errors import InvalidRequest
from headrace_core.history import Kind

from .series import Point
from .targets import Target


class Measured(msgspec.Struct, frozen=True):
    """One entry of a job's measurements."""

    number: int
    kind: Kind
    data: dict[str, Any]


class Sink(Protocol):
    """See the module."""

    def write(self, entry: Measured, point: Point) -> None:
        """Take one entry, also as scalars."""
        ...

    def flush(self) -> int:
        """The size in bytes of what is out; 0 for what is no file."""
        ...

    def close(self) -> None:
        """All is out afterwards."""
        ...


def create(target: Target, folder: Path, size: int, job: Mapping[str, Any], options: Mapping[str, Any]) -> Sink:
    """A sink in `folder` that goes on after its first `size` bytes.

    `job` has `id`, `created_at`, `model` and `hyperparameters`; `options` are those of the job's integration. Raises
    `InvalidRequest` where the target's package is not installed.
    """
    if target == "jsonl":
        return Jsonl(folder, size)
    try:
        if target == "tensorboard":
            from .tensorboard import TensorBoard

            return TensorBoard(folder, size, job)
        from .wandb_run import WandbRun

        return WandbRun(folder, job, options)
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"exports to {target} need the package {error.name}: pip install 'headrace[{target}]' beside the gateway"
        ) from error


class Jsonl:
    """`metrics.jsonl`: an entry a line, as the metrics route answers it."""

    def __init__(self, folder: Path, size: int) -> None:
        self._file = opened_at(folder / "metrics.jsonl", size)

    def write(self, entry: Measured, point: Point) -> None:
        """See `Sink`."""
        line = {"id": str(entry.number), "kind": entry.kind, "data": entry.data}
        self._file.write(msgspec.json.encode(line) + b"\n")

    def flush(self) -> int:
        """See `Sink`."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


def opened_at(path: Path, size: int) -> IO[bytes]:
    """The file, cut to `size`, to be written on; made where `size` is 0."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file
