"""A model's weights as one file of safetensors, written a layer at a time.

    header       names, types, shapes, places: known beforehand, from tensors without memory
    layer  ──► gathered from the ranks ──► the file's names and precision ──► appended ──► let go

Invariants: rank 0 has one layer in main memory, another rank one tensor while it is gathered; all ranks gather alike to
the end, also where rank 0 cannot write, whose error is raised then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from headrace_core.storage.summed_file import Fingerprint, SummedFile

from .lora import adapted_layer

WEIGHTS = "model.safetensors"
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
}
"""By the names of safetensors: what a model may have that is trained."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LAYER = re.compile(r".*?\.\d+\.")

Tensors = dict[str, Tensor]
Convert = Callable[[Tensors], Tensors]
"""From the tensors of a layer, in main memory or on the meta device, to those of the file."""


def write(
    path: Path | None, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, convert: Convert
) -> Fingerprint:
    """Each tensor once (of tied ones, by the first name), in `dtype` where it is of floats, then as `convert` makes it.

    All ranks call it alike; one without a path writes nothing. Returns the fingerprint of what this one wrote.
    """
    layers = _layers(tensors)
    described = [convert({name: _described(tensor, dtype) for name, tensor in layer.items()}) for layer in layers]
    file = _File(path)
    try:
        file.append([_encoded(_header(described))])
        for size in _sizes(described):
            for layer, of_file in zip(layers, described, strict=True):
                if any(tensor.element_size() == size for tensor in of_file.values()):
                    gathered = gathered_once(layer.items(), dtype, path is not None)
                    found = [tensor for tensor in convert(gathered).values() if tensor.element_size() == size]
                    file.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in found)
    finally:
        file.close()
    return file.fingerprint


@torch.no_grad()
def gathered_once(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, kept: bool) -> Tensors:
    """Each tensor once (of tied ones, by the first name), gathered where it is in shards, in main memory.

    All ranks call it alike, one tensor after the other; a rank that does not keep them gets none.
    """
    found: Tensors = {}
    for name, tensor in _once(tensors):
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        full = cast.full_tensor() if isinstance(cast, DTensor) else cast
        if kept:
            found[name] = full.detach().cpu().contiguous()
    return found


def _once(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _layers(tensors: Iterable[tuple[str, Tensor]]) -> list[Tensors]:
    """Grouped by the first number in their names; a tensor outside of layers stands with its adapters, if it has some,
    else alone. No conversion joins tensors of different layers."""
    found: dict[str, Tensors] = {}
    for name, tensor in _once(tensors):
        layer = _LAYER.match(name)
        found.setdefault(layer[0] if layer else adapted_layer(name) or name, {})[name] = tensor
    return list(found.values())


def _described(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="meta")


def _sizes(described: list[Tensors]) -> list[int]:
    return sorted({tensor.element_size() for layer in described for tensor in layer.values()}, reverse=True)


def _header(described: list[Tensors]) -> dict[str, object]:
    """Types, shapes and places. The largest numbers first: each tensor begins at a multiple of its own size."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for size in _sizes(described):
        for layer in described:
            for name, tensor in layer.items():
                if tensor.element_size() == size:
                    end = at + tensor.nbytes
                    header[name] = {
                        "dtype": _NAMES[tensor.dtype],
                        "shape": list(tensor.shape),
                        "data_offsets": [at, end],
                    }
                    at = end
    return header


def _encoded(header: Mapping[str, object]) -> bytes:
    """With its length before it, and padded: what follows begins at a whole word."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


class _File:
    """A new file, or none. After an error nothing more is written, and closing raises it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: SummedFile | None = None
        self._failed: OSError | None = None

    def append(self, parts: Iterable[Any]) -> None:
        """Bytes, or anything with a buffer."""
        if self._path is None or self._failed is not None:
            return
        try:
            self._file = self._file or SummedFile(self._path)
            for part in parts:
                self._file.write(part)
        except OSError as error:
            self._failed = error

    @property
    def fingerprint(self) -> Fingerprint:
        return (0, 0) if self._file is None else self._file.fingerprint

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._failed is not None:
            raise self._failed
