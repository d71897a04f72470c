"""The contents of a policy version's folder, and how all engines read it.

    whole weights    *.safetensors, Hugging Face names                             → its tensors
    an adapter       adapter_model.safetensors, adapter_config.json (PEFT's, LoRA) → those of the base model, merged:
                                                                                     W + scale · B A, in float32

Invariants: files that are unreadable, incomplete or of another model raise `WeightsDamaged`. An adapter is always
merged into the weights the engine started with, never into those of the version before it, so that rounding does not
accumulate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from headrace_core.errors import WeightsDamaged

from .parameter_names import files_of_parameters

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
"""Prefix of each name of an adapter's tensors, from PEFT's wrapper modules."""
_CHANGE_THE_FORMULA = ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


class BaseModel:
    """The model that an engine started with: every version must have its tensors, and adapters are merged into them."""

    def __init__(self, folder: Path, within: Mapping[str, torch.Tensor] | None = None) -> None:
        """`within`: the model's tensors by their names in memory, if those differ from the names in the folder. Then
        versions use these names, and adapters are merged into these tensors."""
        self.folder = folder
        self._within = within

    @cached_property
    def names(self) -> set[str]:
        """The names of its tensors."""
        return _names(self.folder) if self._within is None else set(self._within)

    def require_whole(self, folder: Path) -> None:
        """Raise `WeightsDamaged` if the version in `folder` lacks a tensor of this model.

        vLLM's own check is not enough: it loads several tensors into one parameter, and considers that loaded after
        the first. Tensors of the base's files that the model does not have are in no version: the learner ignores them.
        """
        if is_adapter(folder):
            return
        there = _names(folder)
        missing = sorted(set().union(*(min((names - there for names in sets), key=len) for sets in self._needed)))
        if missing:
            raise WeightsDamaged(f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} first")

    @cached_property
    def _needed(self) -> list[list[set[str]]]:
        """For each parameter, sets of names of which a version must have one whole; several if matrices are tied."""
        return files_of_parameters(self.folder, self.names) if self._within is None else [[{n}] for n in self._within]

    def size(self, folder: Path) -> int:
        """At most as many bytes as the tensors that `read` yields have; merged ones are float32, so up to twice their
        size in the base model's files."""
        files, times = (_files(self.folder), 2) if is_adapter(folder) else (_files(folder), 1)
        return times * sum(file.stat().st_size for file in files)

    def read(self, folder: Path, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) of the version in `folder`. On a CPU, tensors without an adapter are memory-mapped."""
        return self._merged(Adapter(folder, device), device) if is_adapter(folder) else _tensors(folder, device)

    def _merged(self, adapter: Adapter, device: str) -> Iterator[tuple[str, torch.Tensor]]:
        unknown = sorted(adapter.names - self.names)
        if unknown:
            raise WeightsDamaged(f"the adapter in {adapter.folder} is of another model: {unknown[0]} is not in this")
        tensors = _tensors(self.folder, device) if self._within is None else self._within.items()
        for name, tensor in tensors:
            yield name, adapter.merged(name, tensor.to(device)) if name in adapter.names else tensor


class Adapter:
    """A LoRA adapter in PEFT's format. Raises `WeightsDamaged` if it is incomplete, or not of the form W + scale · B
    A."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        with _readable(folder / CONFIG):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self._scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
            if not math.isfinite(self._scale):
                raise ValueError(f"its scale is {self._scale}")
        unsupported = [setting for setting in _CHANGE_THE_FORMULA if config.get(setting)]
        if unsupported:
            raise WeightsDamaged(f"the adapter in {folder} is no plain LoRA: {', '.join(unsupported)}")
        factors = dict(_tensors(folder, device))
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in sorted({name.rpartition(".lora_")[0] for name in factors}):
            names = [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]
            if not all(name in factors for name in names):
                raise WeightsDamaged(f"the adapter in {folder} lacks a factor of {layer}")
            a, b = (factors[name] for name in names)
            if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
                raise WeightsDamaged(f"the adapter in {folder} has factors of {layer} that do not fit each other")
            self._factors[layer.removeprefix(_PREFIX) + ".weight"] = (a, b)

    @property
    def names(self) -> set[str]:
        """Names of the base model's tensors that the adapter changes."""
        return set(self._factors)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W + scale · B A, [out, in] float32, for the base model's tensor `name` with the value `weight`."""
        a, b = self._factors[name]
        if weight.shape != (len(b), a.shape[1]):
            raise WeightsDamaged(f"the adapter in {self.folder} does not fit {name} {tuple(weight.shape)}")
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=self._scale)


def is_adapter(folder: Path) -> bool:
    """Whether a version's folder holds an adapter instead of full weights."""
    return (folder / CONFIG).is_file()


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsDamaged(f"no safetensors file in {folder}")
    return files


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in _files(folder):
        with _readable(file), safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names


def _tensors(folder: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    for file in _files(folder):
        with _readable(file), safe_open(file, framework="pt", device=device) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield name, tensors.get_tensor(name)


@contextmanager
def _readable(file: Path) -> Iterator[Any]:
    """Context that raises the errors of a truncated or missing file as `WeightsDamaged`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise WeightsDamaged(f"{file} cannot be read: {error}") from error
