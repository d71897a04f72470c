"""Pretrained models: built without memory, then given the part of the weights that this process keeps.

    build ──► model on the meta device ──► adapters, shards (`ProcessGroup.shard`) ──► read_weights
              shapes, no numbers                                                       this rank's numbers

A checkpoint's names are not always the model's: transformers renames tensors, joins the experts of a layer into one
tensor, splits fused projections. Its tables of conversions say how. What is added here is that a rank reads only the
rows that it keeps.

Invariants: a process holds at most its shards, and the tensors of one conversion while it is computed (joined experts
are read in shards, too); every parameter comes from the files, or the model is refused; tensors of the files that the
model does not have are ignored.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from headrace_core.errors import InvalidRequest

from .weight_files import WEIGHTS

_INDEX = f"{WEIGHTS}.index.json"
_ROWS_COMPARED = 4096
_NAMED_IN_ERROR = 3

Stored = Mapping[str, Any]
"""Slices of safetensors by the names of the checkpoint; nothing is read until one is indexed."""


def build(kind: Any, folder: Path, gradient_checkpointing: bool) -> Any:
    """A model of the library's class `kind` on the meta device, float32, without dropout; typed loosely, the library
    has no types.

    With the library's own attention: a config.json may name one that is code of a hub.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in (config, config.get_text_config()):  # the latter in configurations of several models
        part.update({name: 0.0 for name, value in vars(part).items() if "drop" in name and isinstance(value, float)})
        part._attn_implementation = None
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.float32)
    with _opened(folder) as stored:
        _untie(model, stored)
    model.eval()
    if gradient_checkpointing:
        # The library recomputes in training mode alone; without dropout the mode changes nothing else.
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@torch.no_grad()
def read_weights(model: Any, folder: Path, device: torch.device) -> None:
    """Load the weights in `folder` into `model`, which is on the meta device, sharded or not; they go to `device`.

    Parameters keep their precision. Raises `InvalidRequest` if the files lack a parameter, or hold it in another shape,
    or quantized.
    """
    wanted: dict[str, Tensor] = model.state_dict(keep_vars=True)
    conversions = get_model_conversion_mapping(model)
    holders = _holders(model)
    read: set[int] = set()
    with _opened(folder) as stored:
        for source in _sources(model, conversions, stored, wanted).values():
            for name, value in source.values(model, stored, wanted):
                read.add(id(wanted[name]))
                filled = _filled(wanted[name], value, device, f"{folder.name}: {name}")
                for module, attribute in holders[id(wanted[name])]:
                    _put(module, attribute, filled)
    lacking = [name for name, p in wanted.items() if isinstance(p, nn.Parameter) and id(p) not in read]
    if lacking:
        raise InvalidRequest(
            f"{folder.name} cannot be trained: its files lack {len(lacking)} of the model's tensors, "
            f"{', '.join(lacking[:_NAMED_IN_ERROR])} among them"
        )
    model._weight_conversions = [c for c in conversions if c.was_used()]  # what `revert_weight_conversion` reverts
    _compute_buffers(model, device)


# ── names, and what is made of several tensors ───────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Source:
    """The tensors of the checkpoint that one tensor of the model is made of, or several that are made of the same."""

    target: str
    """The name in the model of the first tensor that is made of them."""
    converter: WeightConverter | None
    """None: the tensor is used as it is stored."""
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names in the checkpoint, in natural order, by the pattern of the converter that they match."""

    def values(self, model: Any, stored: Stored, wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name in the model, this rank's rows), for each tensor that the model has."""
        if self.converter is None:
            ((name,),) = self.names.values()
            yield self.target, stored[name][_rows(wanted[self.target])]
        elif self._joins_rows():
            self._check_rows(len(wanted[self.target]))
            rows = _rows(wanted[self.target])
            parts = {pattern: names if rows is ... else names[rows] for pattern, names in self.names.items()}
            if all(parts.values()):  # otherwise there are fewer experts than ranks, and none for this one
                yield from self._converted(parts, model, stored, wanted)
            else:
                yield self.target, torch.empty(_local_shape(wanted[self.target]))
        else:
            for name, whole in self._converted(self.names, model, stored, wanted):
                yield name, whole[_rows(wanted[name])]

    def _joins_rows(self) -> bool:
        """Each stored tensor becomes one row of the first dimension, or a part of one."""
        assert self.converter is not None
        first, *others = self.converter.operations
        joins = isinstance(first, MergeModulelist) and first.dim == 0
        return joins and all(isinstance(op, Concatenate) and op.dim != 0 for op in others)

    def _check_rows(self, rows: int) -> None:
        if any(len(names) != rows for names in self.names.values()):
            found = ", ".join(f"{len(names)} of {pattern}" for pattern, names in self.names.items())
            raise InvalidRequest(f"{self.target} is made of {rows} tensors each, and the files hold {found}")

    def _converted(
        self, names: Mapping[str, list[str]], model: Any, stored: Stored, wanted: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        converter = deepcopy(self.converter)
        assert converter is not None
        for pattern, parts in names.items():
            for name in parts:
                converter.add_tensor(self.target, name, pattern, stored[name][...])
        for name, value in converter.convert(self.target, model=model, config=model.config).items():
            if name in wanted:
                yield name, value[0] if isinstance(value, list) else value


def _sources(model: Any, conversions: list[Any], stored: Stored, wanted: Mapping[str, Any]) -> dict[str, _Source]:
    """By the name in the model; the conversions note whether they were used."""
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = model.base_model_prefix
    found: dict[str, _Source] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted:  # the stored name may be that of the model already, except for the prefix
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        if target in wanted:
            source = found.setdefault(target, _Source(target, None if pattern is None else by_pattern[pattern]))
            source.names[name if pattern is None else pattern].append(name)
    return found


def _untie(model: Any, stored: Stored) -> None:
    """Separate matrices that the configuration ties, but of which the files hold two that differ."""
    wanted = model.state_dict(keep_vars=True)
    sources = _sources(model, get_model_conversion_mapping(model), stored, wanted)
    for one, other in list(model.all_tied_weights_keys.items()):
        names = [name for tied in (one, other) if tied in sources for name in chain(*sources[tied].names.values())]
        if len(names) == 2 and not _equal(stored[names[0]], stored[names[1]]):
            path, _, attribute = one.rpartition(".")
            _put(model.get_submodule(path), attribute, nn.Parameter(torch.empty_like(wanted[one])))
            del model.all_tied_weights_keys[one]


def _equal(a: Any, b: Any) -> bool:
    starts = range(0, a.get_shape()[0], _ROWS_COMPARED)
    return a.get_shape() == b.get_shape() and all(
        torch.equal(a[i : i + _ROWS_COMPARED], b[i : i + _ROWS_COMPARED]) for i in starts
    )


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _opened(folder: Path) -> Iterator[Stored]:
    """All tensors of the checkpoint. Raises `InvalidRequest` where there is none."""
    with ExitStack() as files:
        stored: dict[str, Any] = {}
        for path in _files(folder):
            file = files.enter_context(safe_open(path, framework="pt"))
            stored |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        yield stored


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / _INDEX).is_file():
        files: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return [folder / Path(name).name for name in sorted(set(files.values()))]
    raise InvalidRequest(f"{folder.name} cannot be trained: its folder has neither {WEIGHTS} nor {_INDEX}")


# ── tensors of the model ─────────────────────────────────────────────────────────────────────────────────────────────


def _rows(tensor: Tensor) -> Any:
    """The slice of the first dimension that this rank keeps; `...` if it keeps all. FSDP shards no other dimension."""
    if not isinstance(tensor, DTensor):
        return ...
    placed = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    (rows, *_), (start, *_) = placed
    return slice(start, start + rows)


def _local_shape(tensor: Tensor) -> torch.Size:
    return tensor.to_local().shape if isinstance(tensor, DTensor) else tensor.shape


def _filled(tensor: Tensor, value: Tensor, device: torch.device, name: str) -> Tensor:
    """A parameter or buffer like `tensor`, filled with `value`: all of it, or this rank's shard."""
    if value.shape != _local_shape(tensor):
        raise InvalidRequest(
            f"{name} has the shape {list(value.shape)} in its file, and {list(_local_shape(tensor))} by config.json"
        )
    if tensor.is_floating_point() and not (value.is_floating_point() and value.element_size() > 1):
        raise InvalidRequest(f"{name} is quantized, and gradients need whole weights")
    # A copy, as `value` may lie in the mapped file. To the device first: fewer bytes where the file has 16 bits.
    found = torch.empty(value.shape, dtype=tensor.dtype, device=device).copy_(value.to(device))
    if isinstance(tensor, DTensor):
        found = DTensor.from_local(
            found,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    if isinstance(tensor, nn.Parameter):
        found = nn.Parameter(found, requires_grad=tensor.requires_grad)
    found._is_hf_initialized = True  # type: ignore[attr-defined]  # `initialize_weights` leaves it alone
    return found


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By the id of each parameter and buffer, the modules and attributes that refer to it: several if it is tied."""
    found = defaultdict(list)
    for module in model.modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found[id(tensor)].append((module, attribute))
    return found


def _put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """In the place of the parameter or buffer that is there."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(attribute, tensor)
    else:
        module._buffers[attribute] = tensor


def _compute_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no file holds, such as the frequencies of rotary embeddings."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    model.initialize_weights()
