"""The policy being trained: a Hugging Face causal language model, its log-probabilities, and its files.

Invariants: parameters are float32, the optimizer's master copy (on a GPU the forward pass runs in bfloat16, by
autocast); there is no dropout, so that the policy trained is the policy sampled; full logits never exist
(`chunked_logprobs`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from headrace_core.config.hyperparameters import Hyperparameters

from ..algorithms.batch import MicroBatch
from ..device import precision, training_device
from ..distributed.process_group import ProcessGroup
from . import logits, lora
from .chunked_logprobs import chosen_logprobs

WEIGHTS = "model.safetensors"
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What a model folder holds beside weights: configuration, tokenizer, chat template, generation settings."""
MORE_TEMPLATES = "additional_chat_templates"
"""Subfolder with a model's chat templates beside the default one."""
_PRECISIONS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""By the names of safetensors; of others (integers, eight bits) a trained tensor is written whole."""


class PolicyNet(nn.Module):
    """One module around model and head, so that one forward call covers both."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._soft_cap = logits.soft_cap(model.config)

    def forward(self, batch: MicroBatch, temperature: float) -> Tensor:
        """[N] natural logs of the contributing tokens, float32, of the distribution at `temperature`."""
        hidden_ND = chosen_hidden(self.model.base_model, batch)
        head = self.model.get_output_embeddings()
        return chosen_logprobs(head, hidden_ND, batch.targets_N, temperature, self._soft_cap)


class Policy:
    """A model folder, loaded; with `lora_rank`, frozen but for its adapters.

    Raises `InvalidRequest` for a model whose logits are more than one matrix product and a soft cap, or whose adapters
    the engine could not be told.
    """

    def __init__(self, folder: Path, settings: Hyperparameters | None = None) -> None:
        """`settings` None: the base model as it is, for a reference."""
        self.folder = folder
        self.device = training_device()
        self.model = load_model(AutoModelForCausalLM, folder, settings is not None and settings.gradient_checkpointing)
        logits.check(self.model, folder.name)
        self.adapted = settings is not None and settings.lora_rank is not None
        self._for_vllm = settings is not None and settings.engine == "vllm"
        if settings is not None and settings.lora_rank is not None:
            lora.attach(self.model, settings.lora_rank, settings.lora_alpha, settings.seed)
        self._adapter_names = lora.names_in_checkpoint(self.model) if self.adapted and self._for_vllm else None
        self.net = PolicyNet(self.model)

    @property
    def parameters(self) -> int:
        """How many numbers are trained; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """[N] natural logs of the contributing tokens, float32, of the distribution at `temperature`."""
        with precision(self.device):
            found: Tensor = self.net(batch, temperature)
            return found

    def reference(self, ranks: ProcessGroup) -> Callable[[MicroBatch, float], Tensor]:
        """`logprobs` of the base model: this one without its adapters, else a second one, frozen."""
        if not self.adapted:
            base = Policy(self.folder)
            base.model.requires_grad_(False)
            ranks.shard(base.net)
            return base.logprobs

        def without_adapters(batch: MicroBatch, temperature: float) -> Tensor:
            with lora.disabled(self.model):
                return self.logprobs(batch, temperature)

        return without_adapters

    def write_weights(self, folder: Path | None) -> None:
        """What rollout workers need of a new version: the adapters, or `model.safetensors`.

        By the names that the engine knows: the checkpoint's for vLLM, those within the model for transformers; in the
        engine's own precision: float32 on a CPU, bfloat16 on a GPU, half the bytes. All ranks take part; one without a
        folder gives its shards and writes nothing.
        """
        if self.adapted:
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            state = whole(trained, torch.float32, folder is not None)
            if folder is not None:
                lora.write_adapter(self.model, folder, state, self._adapter_names)
            return
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        tensors = whole(self.model.state_dict(keep_vars=True).items(), dtype, folder is not None)
        if folder is not None:
            named = _as_named(self.model, tensors) if self._for_vllm else tensors
            save_file(named, folder / WEIGHTS, metadata={"format": "pt"})

    def write_model(self, folder: Path | None) -> None:
        """A whole model folder, with the base's names, precision and other files, adapters merged: loads where it does.

        `folder` None as in `write_weights`.
        """
        state = whole(self.model.state_dict(keep_vars=True).items(), torch.float32, folder is not None)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and file.suffix in _COPIED and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        if (templates := self.folder / MORE_TEMPLATES).is_dir():
            (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
            for file in sorted(templates.glob("*.jinja")):
                shutil.copyfile(file, folder / MORE_TEMPLATES / file.name)
        merged = _as_saved(_as_named(self.model, lora.merged(self.model, state)), self.folder)
        save_file(merged, folder / WEIGHTS, metadata={"format": "pt"})


def _as_named(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names that they have in the model's checkpoint. The library keeps some by others: the experts of a layer
    as one tensor, the text model of several beneath its own."""
    found: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return {
        name: tensor
        if name in tensors
        else tensor.clone(memory_format=torch.contiguous_format)  # a part of another one
        for name, tensor in found.items()
    }


def _as_saved(tensors: dict[str, Tensor], base: Path) -> dict[str, Tensor]:
    """Each in the precision in which the base holds it; one that it does not name, in that of most."""
    precisions: dict[str, torch.dtype] = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 (it is no dict)
                precisions[name] = _PRECISIONS.get(saved.get_slice(name).get_dtype(), torch.float32)
    most = Counter(precisions.values()).most_common(1)
    usual = most[0][0] if most else torch.float32
    return {
        name: tensor.to(precisions.get(name, usual)) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


# ── shared with the critic ───────────────────────────────────────────────────────────────────────────────────────────


def load_model(kind: Any, folder: Path, gradient_checkpointing: bool) -> Any:
    """A model of the library's class `kind`, float32, without dropout; typed loosely, the library has no types.

    From safetensors alone, and with the library's own attention: a config.json may name one that is code of a hub.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in (config, config.get_text_config()):  # the latter in configurations of several models
        part.update({name: 0.0 for name, value in vars(part).items() if "drop" in name and isinstance(value, float)})
        part._attn_implementation = None
    given = {"config": config, "dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    model = kind.from_pretrained(folder, **given)
    model.to(training_device()).eval()
    if gradient_checkpointing:
        # The library recomputes in training mode alone; without dropout the mode changes nothing else.
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@torch.no_grad()
def whole(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, kept: bool) -> dict[str, Tensor]:
    """Each tensor once (of tied ones, the first name), gathered where it is in shards, in main memory.

    All ranks call it alike, one tensor after the other; a rank that does not keep them gets none.
    """
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        full = cast.full_tensor() if isinstance(cast, DTensor) else cast
        if kept:
            found[name] = full.detach().cpu().contiguous()
    return found


def chosen_hidden(base: Any, batch: MicroBatch) -> Tensor:
    """[N, D] last hidden states at the positions that predict the contributing tokens."""
    hidden_BTD = base(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state
    found: Tensor = hidden_BTD[batch.rows_N, batch.positions_N]
    return found
