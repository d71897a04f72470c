"""A model folder in Hugging Face format: is it complete, and a copy of it that is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from headrace_core.errors import Damaged, InvalidRequest, NotFound, WeightsDamaged
from headrace_core.storage.atomic_write import written_whole

RESTORE = "restore the model's folder, or name another model"
_ANOTHER = "export another step"
_WEIGHTS = "model.safetensors"
_LENGTH_BYTES = 8
_MOST_TEXT = 64 * 1024 * 1024
"""Bytes of a configuration or a header; no good one comes near it."""


class _Tensor(msgspec.Struct):
    """What is wanted of a safetensors header; its `__metadata__` has none of it."""

    data_offsets: tuple[int, int] = (0, 0)


def text_of(file: Path) -> str:
    """A text of a model's folder. Raises `Damaged`."""
    try:
        if file.stat().st_size > _MOST_TEXT:
            raise Damaged(f"{file} is larger than {_MOST_TEXT} bytes: {RESTORE}", param="model")
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{file} cannot be read: {error}: {RESTORE}", param="model") from error


def json_of(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises `Damaged`."""
    try:
        told = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is not JSON: {error}: {RESTORE}", param="model") from error
    if not isinstance(told, dict):
        raise Damaged(f"{file} is no JSON object: {RESTORE}", param="model")
    return told


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
    with written_whole(target, partial):
        shutil.copytree(source, partial, ignore=_links)
        _check(partial)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _check(folder: Path) -> None:
    """Raises `WeightsDamaged` unless config and weights are there, the latter as long as their header says."""
    weights = folder / _WEIGHTS
    for file in (folder / "config.json", weights):
        if not file.is_file():
            raise WeightsDamaged(f"the checkpoint is not complete: it has no {file.name}; {_ANOTHER}")
    try:
        json_of(folder / "config.json")
    except Damaged as error:
        raise WeightsDamaged(f"the checkpoint is damaged: {error.message}; {_ANOTHER}") from error
    size = weights.stat().st_size
    try:
        expected = _expected(weights, size)
    except (ValueError, RecursionError) as error:
        raise WeightsDamaged(f"{_WEIGHTS} has no header that can be read; {_ANOTHER}") from error
    if size != expected:
        raise WeightsDamaged(f"{_WEIGHTS} has {size} bytes, and its header speaks of {expected}; {_ANOTHER}")


def _expected(weights: Path, size: int) -> int:
    """Bytes of a safetensors file by its own header. Raises `ValueError`, `RecursionError` for one that is none."""
    with weights.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        if length > min(size, _MOST_TEXT):
            raise ValueError(f"a header of {length} bytes")
        tensors = msgspec.json.decode(content.read(length), type=dict[str, _Tensor])
    return _LENGTH_BYTES + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)


def _links(folder: str, names: list[str]) -> list[str]:
    """A checkpoint has none: what leads out of it is not followed."""
    return [name for name in names if (Path(folder) / name).is_symlink()]
