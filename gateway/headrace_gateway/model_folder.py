"""A model folder in Hugging Face format: is it complete, and a copy of it that is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from headrace_core.errors import InvalidRequest, NotFound, WeightsDamaged

_WEIGHTS = "model.safetensors"
_LENGTH_BYTES = 8


def copy(source: Path, target: Path) -> int:
    """The copy's size in bytes. Raises `InvalidRequest` where `target` cannot be, `NotFound`, `WeightsDamaged`."""
    if target.exists() or target.is_symlink():
        raise InvalidRequest(f"{target} exists already: name a folder that does not; nothing is overwritten")
    if not target.absolute().parent.is_dir():
        raise InvalidRequest(f"there is no folder {target.absolute().parent} to put {target.name} into")
    if not source.is_dir():
        raise NotFound(
            f"there is no {source} on this machine: it is a folder of the gateway's machine; run this there, or where "
            "its data folder is mounted at that path"
        )
    partial = target.absolute().parent / f".{target.name}.partial-{os.getpid()}"
    try:
        shutil.copytree(source, partial)
        _check(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _check(folder: Path) -> None:
    """Raises `WeightsDamaged` unless config and weights are there, the latter as long as their header says."""
    weights = folder / _WEIGHTS
    for file in (folder / "config.json", weights):
        if not file.is_file():
            raise WeightsDamaged(f"the checkpoint is not complete: it has no {file.name}")
    size = weights.stat().st_size
    with weights.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        try:
            tensors = json.loads(content.read(min(length, size)))
        except ValueError as error:
            raise WeightsDamaged(f"{_WEIGHTS} has no header that can be read") from error
    tensors.pop("__metadata__", None)
    expected = _LENGTH_BYTES + length + max((t["data_offsets"][1] for t in tensors.values()), default=0)
    if size != expected:
        raise WeightsDamaged(f"{_WEIGHTS} has {size} bytes, and its header speaks of {expected}")
