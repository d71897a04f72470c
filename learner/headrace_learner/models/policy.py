"""The policy being trained: a Hugging Face causal language model, its log-probabilities, and its files.

Invariants: parameters that are trained are float32, also where forward and backward passes compute in bfloat16, for
which FSDP casts them a layer at a time; frozen ones have the precision of the passes; there is no dropout, so that the
policy trained is the policy sampled; full logits never exist (`chunked_logprobs`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.storage.summed_file import Fingerprint

from ..algorithms.batch import MicroBatch
from ..device import compute_dtype, training_device
from ..distributed.process_group import ProcessGroup, one_process
from . import logits, lora
from .chunked_logprobs import chosen_logprobs
from .pretrained import build, read_weights
from .weight_files import DTYPES, WEIGHTS, Tensors, gathered_once, write

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""What a model folder holds beside weights: configuration, tokenizer, chat template, generation settings."""
MORE_TEMPLATES = "additional_chat_templates"
"""Subfolder with a model's chat templates beside the default one."""


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

    def check_logits(self, name: str) -> None:
        """See `logits.check`."""
        logits.check(self.model, name)


class Policy:
    """A model folder, loaded, in shards where there are several ranks; with `lora_rank`, frozen but for its adapters.

    Raises `InvalidRequest` for a model whose files lack weights, whose logits are more than one matrix product and a
    soft cap, or whose adapters the engine could not be told.
    """

    def __init__(
        self,
        folder: Path,
        settings: Hyperparameters | None = None,
        ranks: ProcessGroup | None = None,
        trained: bool = True,
    ) -> None:
        """`settings` None: all by default. All ranks call it alike; `trained` False: the base model, for a reference.

        Without `ranks`, this process alone.
        """
        self.folder = folder
        self.device = training_device()
        self.ranks = ranks or one_process(compute_dtype(settings))
        self._settings = settings
        self._for_vllm = settings is not None and settings.engine == "vllm"
        recomputes = trained and settings is not None and settings.gradient_checkpointing
        self.model = build(AutoModelForCausalLM, folder, recomputes)
        self.adapted = trained and settings is not None and settings.lora_rank is not None
        if self.adapted and settings is not None and settings.lora_rank is not None:
            lora.attach(self.model, settings.lora_rank, settings.lora_alpha, settings.seed)
        elif not trained:
            self.model.requires_grad_(False)
        self.net = PolicyNet(self.model)
        self._load(compute_dtype(settings))
        self._adapter_names = lora.names_in_checkpoint(self.model) if self.adapted and self._for_vllm else None

    def _load(self, compute: torch.dtype) -> None:
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(compute)
        self.ranks.shard(self.net, compute)
        with lora.detached(self.model):
            read_weights(self.model, self.folder, self.device)
        register_fsdp_forward_method(self.net, "check_logits")
        self.net.check_logits(self.folder.name)
        if isinstance(self.net, FSDPModule):
            self.net.reshard()  # a forward pass leaves what is outside of layers gathered, for a backward pass

    @property
    def parameters(self) -> int:
        """How many numbers are trained; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """[N] natural logs of the contributing tokens, float32, of the distribution at `temperature`."""
        found: Tensor = self.net(batch, temperature)
        return found

    def reference(self) -> Callable[[MicroBatch, float], Tensor]:
        """`logprobs` of the base model: this one without its adapters, else a second one, frozen."""
        if not self.adapted:
            return Policy(self.folder, self._settings, self.ranks, trained=False).logprobs

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
            state = gathered_once(trained, torch.float32, folder is not None)
            if folder is not None:
                lora.write_adapter(self.model, folder, state, self._adapter_names)
            return
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        tensors = self.model.state_dict(keep_vars=True).items()
        path = None if folder is None else folder / WEIGHTS
        write(path, tensors, dtype, self._as_named if self._for_vllm else lambda layer: layer)

    def write_model(self, folder: Path | None) -> dict[str, Fingerprint]:
        """A whole model folder, with the base's names, precision and other files, adapters merged: loads where it does.

        `folder` None as in `write_weights`. Returns the fingerprint of the file of weights, by its name; the other
        files are small.
        """
        if folder is not None:
            self._copy_files(folder)
        precision_of = _precisions(self.folder)

        def as_saved(layer: Tensors) -> Tensors:
            named = self._as_named(lora.merged(self.model, layer))
            return {n: t.to(precision_of(n)) if t.is_floating_point() else t for n, t in named.items()}

        tensors = self.model.state_dict(keep_vars=True).items()
        return {WEIGHTS: write(None if folder is None else folder / WEIGHTS, tensors, torch.float32, as_saved)}

    def _copy_files(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and file.suffix in _COPIED and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        if (templates := self.folder / MORE_TEMPLATES).is_dir():
            (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
            for file in sorted(templates.glob("*.jinja")):
                shutil.copyfile(file, folder / MORE_TEMPLATES / file.name)

    def _as_named(self, layer: Tensors) -> Tensors:
        """By the names that they have in the model's checkpoint. The library keeps some by others: the experts of a
        layer as one tensor, the text model of several beneath its own."""
        found: Tensors = revert_weight_conversion(self.model, layer)
        return found


def _precisions(base: Path) -> Callable[[str], torch.dtype]:
    """In which the base holds the tensor of a name; of one that it does not name, that of most."""
    precisions: dict[str, torch.dtype] = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 (it is no dict)
                found = DTYPES.get(saved.get_slice(name).get_dtype(), torch.float32)
                precisions[name] = found if found.is_floating_point else torch.float32
    most = Counter(precisions.values()).most_common(1)
    usual = most[0][0] if most else torch.float32
    return lambda name: precisions.get(name, usual)


# ── shared with the critic ───────────────────────────────────────────────────────────────────────────────────────────


def chosen_hidden(base: Any, batch: MicroBatch) -> Tensor:
    """[N, D] last hidden states at the positions that predict the contributing tokens."""
    hidden_BTD = base(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state
    found: Tensor = hidden_BTD[batch.rows_N, batch.positions_N]
    return found
