"""Creates the sink of a target. The packages of TensorBoard and Weights & Biases are imported only when needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace_core.errors import InvalidRequest

from .series import Point
from .sink import Sink, SinkEntry, opened_at
from .targets import Target


def create(target: Target, folder: Path, size: int, job: Mapping[str, Any], options: Mapping[str, Any]) -> Sink:
    """A sink in `folder` that continues after the first `size` bytes of its file.

    `job` has `id`, `created_at`, `model` and `hyperparameters`; `options`: those of the job's integration. Raises
    `InvalidRequest` if the target's package is not installed.
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
    """Writes `metrics.jsonl`: one entry per line, in the form of the metrics route."""

    def __init__(self, folder: Path, size: int) -> None:
        self._file = opened_at(folder / "metrics.jsonl", size)

    def write(self, entry: SinkEntry, point: Point) -> None:
        line = {"id": str(entry.number), "kind": entry.kind, "data": entry.data}
        self._file.write(msgspec.json.encode(line) + b"\n")

    def flush(self) -> int:
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
