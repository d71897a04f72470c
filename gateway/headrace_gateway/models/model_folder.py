"""Checks that a model folder in Hugging Face format is complete, and copies it atomically."""

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
_MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Limit of a configuration's or header's size in bytes; valid ones are far smaller."""


class _Tensor(msgspec.Struct):
    """The part of a safetensors header's entry that is needed; the entry `__metadata__` has none of it."""

    data_offsets: tuple[int, int] = (0, 0)
    shape: tuple[int, ...] = ()


def text_of(file: Path) -> str:
    """Read a text file of a model's folder. Raises `Damaged`."""
    try:
        if file.stat().st_size > _MAX_TEXT_BYTES:
            raise Damaged(f"{file} is larger than {_MAX_TEXT_BYTES} bytes: {RESTORE}", param="model")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{file} cannot be read: {error}: {RESTORE}", param="model") from error


def json_of(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model's folder, which must hold an object. Raises `Damaged`."""
    try:
        content = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is not JSON: {error}: {RESTORE}", param="model") from error
    if not isinstance(content, dict):
        raise Damaged(f"{file} is no JSON object: {RESTORE}", param="model")
    return content


def shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors by name; empty if its header cannot be read."""
    try:
        _, tensors = _header(weights)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: tensor.shape for name, tensor in tensors.items()}


def copy(source: Path, target: Path) -> int:
    """Copy a model folder; returns the copy's size in bytes. Raises `InvalidRequest` if `target` cannot be created,
    `NotFound`, `WeightsDamaged`."""
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
    """Raises `WeightsDamaged` if config or weights are missing, or the weights' size differs from their header's."""
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
        length, tensors = _header(weights)
    except (ValueError, RecursionError) as error:
        raise WeightsDamaged(f"{_WEIGHTS} has no header that can be read; {_ANOTHER}") from error
    expected = length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != expected:
        raise WeightsDamaged(f"{_WEIGHTS} has {size} bytes, and its header speaks of {expected}; {_ANOTHER}")


def _header(weights: Path) -> tuple[int, dict[str, _Tensor]]:
    """(length of a safetensors file's header in bytes, its entries). Raises `ValueError` or `RecursionError` if it is
    invalid."""
    with weights.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        if length > min(weights.stat().st_size, _MAX_TEXT_BYTES):
            raise ValueError(f"a header of {length} bytes")
        return _LENGTH_BYTES + length, msgspec.json.decode(content.read(length), type=dict[str, _Tensor])


def _links(folder: str, names: list[str]) -> list[str]:
    """The links in a folder, which the copy ignores: a checkpoint has none, and others may lead out of the folder."""
    return [name for name in names if (Path(folder) / name).is_symlink()]
