"""Tiny checkpoints of every kind that a model is loaded from, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    HrmTextConfig,
    HrmTextForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from .cases import VOCAB

SMALL = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64},
}
_SEEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}

MODELS: dict[str, tuple[Any, Any]] = {
    "tied": (Qwen3ForCausalLM, Qwen3Config(**SMALL, tie_word_embeddings=True)),
    "untied": (Qwen3ForCausalLM, Qwen3Config(**SMALL, tie_word_embeddings=False)),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
    "odd_experts": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2)),
    "one_expert": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=1, num_experts_per_tok=1)),
    "gemma3": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(
            text_config={**SMALL, "model_type": "gemma3_text"},
            vision_config={**_SEEN, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        ),
    ),
    "fused": (
        HrmTextForCausalLM,
        HrmTextConfig(**{name: value for name, value in SMALL.items() if name != "num_key_value_heads"}, L_cycles=1),
    ),
}
"""Of the experts, two ranks have as many each, one more, or all and none. Of the last, files have projections as one
tensor that the library has apart."""

RENAMED = ("qwen3_moe", "mixtral", "odd_experts", "one_expert", "gemma3", "fused")
"""Files name their tensors otherwise than the library, or have them joined otherwise."""


def save_model(name: str, folder: Path, **given: Any) -> Path:
    """One of `MODELS` with random weights; `given` goes to `save_pretrained`."""
    torch.manual_seed(0)
    kind, config = MODELS[name]
    kind(config).save_pretrained(folder, **given)
    return folder


def _changed(name: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        save_model(name, folder)
        change_tensors(folder, change)
        return folder

    return save


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Of a folder with one file of weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _head_alone(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def _in_bfloat16(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}


def _from_several_files(folder: Path) -> Path:
    save_model("qwen3_moe", folder, max_shard_size="20KB")
    assert len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) > 3
    (folder / "consolidated.safetensors").write_bytes(b"of another program, and not in the index")
    return folder


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    **{name: partial(save_model, name) for name in MODELS},
    "several_files": _from_several_files,
    "bfloat16": _changed("mixtral", _in_bfloat16),
    "extra_tensors": _changed("tied", lambda tensors: tensors.update({"mtp.layers.0.weight": torch.ones(3, 2)})),
    "embeddings_stored_twice": _changed(
        "tied", lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    ),
    "two_embeddings_though_tied": _changed(
        "tied", lambda tensors: tensors.update({"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]})
    ),
    "head_alone_of_tied": _changed("tied", _head_alone),
}
"""Each writes itself to a folder, and returns it."""
