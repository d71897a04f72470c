"""What a policy version's folder holds, and how every engine reads it.

    whole weights    *.safetensors, Hugging Face names                             → its tensors
    an adapter       adapter_model.safetensors, adapter_config.json (PEFT's, LoRA) → those of the base model, merged:
                                                                                     W + scale · B A, in float32

Invariants: files that are unreadable, incomplete or not of this model raise `WeightsDamaged`; an adapter is always
merged into the weights the engine started with, never into those of the version before it, so no rounding adds up.
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
from transformers import AutoConfig

from headrace_core.errors import WeightsDamaged

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
"""Before each name of an adapter's tensors: PEFT's own wrappers."""
_CHANGE_THE_FORMULA = ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


def own_config(folder: Path) -> Any:
    """The configuration of a model folder, with transformers' own attention: its config.json may name one that is code
    of a hub."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in (config, config.get_text_config()):
        part._attn_implementation = None
    return config


class BaseModel:
    """The model folder an engine started with: what every version must hold, and what adapters are merged into."""

    def __init__(self, folder: Path, within: Mapping[str, torch.Tensor] | None = None) -> None:
        """`within`: its tensors by the names that they have within a model, where versions have those, not the
        folder's; they are the base then."""
        self.folder = folder
        self._within = within

    @cached_property
    def names(self) -> set[str]:
        """The names of its tensors."""
        return _names(self.folder) if self._within is None else set(self._within)

    def require_whole(self, folder: Path) -> None:
        """Raise `WeightsDamaged` where the version in `folder` lacks a tensor that this folder holds.

        vLLM's own check is not enough: it loads several tensors into one parameter, and takes that as loaded after one.
        """
        missing = [] if is_adapter(folder) else sorted(self.names - _names(folder))
        if missing:
            raise WeightsDamaged(f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} first")

    def read(self, folder: Path, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """All (name, tensor) of the version in `folder`; on a CPU, those that nothing was merged into are mapped."""
        return self._merged(Adapter(folder, device), device) if is_adapter(folder) else _tensors(folder, device)

    def _merged(self, adapter: Adapter, device: str) -> Iterator[tuple[str, torch.Tensor]]:
        strange = sorted(adapter.names - self.names)
        if strange:
            raise WeightsDamaged(f"the adapter in {adapter.folder} is of another model: {strange[0]} is not in this")
        tensors = _tensors(self.folder, device) if self._within is None else self._within.items()
        for name, tensor in tensors:
            yield name, adapter.merged(name, tensor.to(device)) if name in adapter.names else tensor


class Adapter:
    """A LoRA adapter in PEFT's format. Raises `WeightsDamaged` where it is incomplete, or more than W + scale · B A."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        with _readable(folder / CONFIG):
            config = json.loads((folder / CONFIG).read_text())
            self._scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
            if not math.isfinite(self._scale):
                raise ValueError(f"its scale is {self._scale}")
        beyond = [setting for setting in _CHANGE_THE_FORMULA if config.get(setting)]
        if beyond:
            raise WeightsDamaged(f"the adapter in {folder} is no plain LoRA: {', '.join(beyond)}")
        factors = dict(_tensors(folder, device))
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in sorted({name.rpartition(".lora_")[0] for name in factors}):
            ours = [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]
            if not all(name in factors for name in ours):
                raise WeightsDamaged(f"the adapter in {folder} lacks a factor of {layer}")
            a, b = (factors[name] for name in ours)
            if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
                raise WeightsDamaged(f"the adapter in {folder} has factors of {layer} that do not fit each other")
            self._factors[layer.removeprefix(_PREFIX) + ".weight"] = (a, b)

    @property
    def names(self) -> set[str]:
        """The tensors of the base model that it changes."""
        return set(self._factors)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W + scale · B A ([out, in], float32) for the base model's `weight` called `name`."""
        a, b = self._factors[name]
        if weight.shape != (len(b), a.shape[1]):
            raise WeightsDamaged(f"the adapter in {self.folder} does not fit {name} {tuple(weight.shape)}")
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=self._scale)


def is_adapter(folder: Path) -> bool:
    """Whether a version's folder holds an adapter instead of whole weights."""
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
    """Errors of a file that is cut short, or gone, as `WeightsDamaged`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise WeightsDamaged(f"{file} cannot be read: {error}") from error
