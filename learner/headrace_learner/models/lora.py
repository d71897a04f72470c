"""Low-rank adapters: a policy that is its frozen base and a small difference (LoRA, arXiv 2106.09685; by PEFT).

    y = W x + (alpha / rank) · B A x      W [out, in] frozen, A [rank, in] and B [out, rank] trained, B = 0 at first

    attach ──► the model, in place ──┬─ write_adapter   what is published: A and B, in PEFT's format
                                     ├─ merged          W + (alpha / rank) · B A under the base model's own names
                                     ├─ detached        the base model's own layers, to load weights into them
                                     └─ disabled        the base model itself: the reference policy, without a copy

Invariants: an attached model keeps its class, its head and its embeddings, and computes what it did until a B changes;
A and B are float32, and alone are trained; equal seeds give equal adapters, whatever was drawn before, and the random
state of the process stays as it was; there is no dropout, so the policy trained is the policy sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from headrace_core.errors import InvalidRequest

from ..device import training_device

ADAPTER = "adapter_model.safetensors"
"""Beside PEFT's `adapter_config.json`."""
_NAME = "default"
"""PEFT's name of an adapter that nobody named: part of parameters' names in the model, of none in a file."""
_PREFIX = "base_model.model."
"""What PEFT puts before each name in a file."""
_BASE = ".base_layer."


def attach(model: Any, rank: int, alpha: float, seed: int) -> None:
    """Give every linear layer of `model` but its head an adapter, in place, and freeze all else.

    Of a model on the meta device, too: the adapters are real, on the training device. Experts that a model keeps as one
    tensor for all are no linear layers: they stay frozen. Raises `InvalidRequest` for a model without linear layers of
    torch.
    """
    from peft import LoraConfig, inject_adapter_in_model  # 3 s: not for those who train all weights

    head = model.get_output_embeddings()
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not targets:
        raise InvalidRequest(f"{type(model).__name__} has no linear layers to adapt: leave lora_rank out")
    # By name: of a mixture of experts, PEFT takes "all-linear" for its experts, too, with ranks of their own.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, model, _NAME, low_cpu_mem_usage=True)  # on the meta device
    device = training_device() if head.weight.is_meta else head.weight.device
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        for layer in _layers(model).values():
            factors = layer.lora_A[_NAME], layer.lora_B[_NAME]
            for factor in factors:
                factor.to_empty(device="cpu")
            layer.reset_lora_parameters(_NAME, True)
            for factor in factors:
                factor.to(device)


@contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Inside, an attached `model` is its base."""
    layers = list(_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def detached(model: Any) -> Iterator[None]:
    """Inside, an attached `model` has its own layers by their own names, as if it had never been attached."""
    layers = _layers(model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def write_adapter(
    model: Any, folder: Path, state: Mapping[str, Tensor] | None = None, names: Mapping[str, str] | None = None
) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, as PEFT and vLLM read them; float32.

    `state` is the model's state dict where it is not to be asked for it: gathered from ranks, say. `names` are those of
    the layers for whom the file is: see `names_in_checkpoint`; the model's own by default.
    """
    names = {} if names is None else names
    tensors = {
        _PREFIX + _renamed(name, names).replace(f".{_NAME}.", "."): tensor.to("cpu", torch.float32).contiguous()
        for name, tensor in (model.state_dict() if state is None else state).items()
        if _is_adapter(name)
    }
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    model.peft_config[_NAME].save_pretrained(str(folder))


@torch.no_grad()
def merged(model: Any, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of a plain model that computes what the attached `model` does: W + (alpha / rank) · B A.

    Tensors that have no adapter are the model's own, not copies; of a model that was never attached, all are. `state`
    as in `write_adapter`.
    """
    state = model.state_dict() if state is None else state
    layers = _layers(model)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _is_adapter(name):
            continue
        path, base, leaf = name.rpartition(_BASE)
        if base and leaf == "weight":
            a, b = (state[f"{path}.lora_{factor}.{_NAME}.weight"] for factor in "AB")
            tensor = (tensor + layers[path].scaling[_NAME] * (b @ a)).to(tensor.dtype)
        found[f"{path}.{leaf}" if base else name] = tensor
    return found


def adapted_layer(name: str) -> str | None:
    """The layer to which the tensor `name` of an attached model belongs, as its base or as an adapter; None of others.

    `merged` needs all tensors of such a layer at once.
    """
    layer, found, _ = name.partition(_BASE)
    if not found:
        layer, found, _ = name.partition(".lora_")
    return layer if found else None


def names_in_checkpoint(model: Any) -> dict[str, str]:
    """By the name of each adapted layer in an attached `model`, the name that it has in the model's checkpoint.

    The library keeps some models by other names than their files. Raises `InvalidRequest` where such a layer is there a
    part of another tensor, or several: an adapter of it could not be told to who reads the files.
    """
    found: dict[str, str] = {}
    for layer, module in _layers(model).items():
        weight = torch.empty(module.base_layer.weight.shape, device="meta")
        written = revert_weight_conversion(model, {f"{layer}.weight": weight})
        names = [name for name, tensor in written.items() if tensor.shape == weight.shape]
        name = names[0].removesuffix(".weight") if len(written) == len(names) == 1 else None
        if name is None or name in found.values():
            raise InvalidRequest(
                f"{type(model).__name__} cannot be adapted for vLLM: its files hold {layer}.weight as a part of "
                'another tensor, or as several; take the engine "transformers", or leave lora_rank out',
                param="lora_rank",
            )
        found[layer] = name
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer, factor, rest = name.partition(".lora_")
    return names.get(layer, layer) + factor + rest


def _layers(model: Any) -> dict[str, Any]:
    """The layers that hold an adapter, by the name of each in the model."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
