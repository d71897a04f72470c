"""The plan of a learner's memory against the real thing: transformers' parameters, torch's bytes in a training step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.planning import learner_memory
from headrace_core.planning.learner_memory import learner_parts
from headrace_core.planning.model_shape import Counted, ModelShape, model_shape, numbers
from headrace_lab.training.tiny_models import make_model
from headrace_learner.algorithms.presets import IMPLEMENTATIONS, algorithm
from headrace_learner.models import chunked_logprobs, lora
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer

from .cases import VOCAB, hyperparameters, random_group
from .sharded_load_cases import Allocated, state_of

SIZES = {
    **{"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CONFIGS = {
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3-tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True, attention_bias=True),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, head_dim=16, **EXPERTS),
    "qwen3-moe-some-dense": Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[1], tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "mixtral-tied": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "mistral": MistralConfig(**SIZES, head_dim=20),
}


BASES = {"qwen3-tied": (48, 32), "mixtral": (48, 24)}
"""Sizes of the cosine bases of their matrices, which the first update makes."""


def shape_of(config: Any, folder: Path) -> ModelShape:
    """From the config.json that the library writes."""
    config.save_pretrained(folder)
    found = model_shape(json.loads((folder / "config.json").read_text()))
    assert found is not None
    return found


def each(counted: Counted) -> list[tuple[int, ...]]:
    return sorted(shape for shape, count in counted for _ in range(count))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(CONFIGS[name])
    shape = shape_of(CONFIGS[name], tmp_path)
    assert each(shape.parameters()) == sorted(tuple(p.shape) for p in built.parameters())
    assert numbers(shape.parameters()) == sum(p.numel() for p in built.parameters())
    assert each(shape.base()) == sorted(tuple(p.shape) for p in built.base_model.parameters())


@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe", "llama-tied"])
def test_adapters_are_those_of_the_learner(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(CONFIGS[name])
    lora.attach(built, 4, 16.0, 0)
    trained = sorted(tuple(p.shape) for p in built.parameters() if p.requires_grad)
    assert each(shape_of(CONFIGS[name], tmp_path).adapters(4)) == trained


def test_what_the_plan_repeats_of_the_learner_is_equal() -> None:
    assert learner_memory.LOGITS_AT_ONCE == chunked_logprobs._LOGITS_AT_ONCE
    assert learner_memory.CHUNKS_KEPT == chunked_logprobs._CHUNKS_KEPT
    for name, preset in ALGORITHMS.items():
        assert preset.trains_critic == IMPLEMENTATIONS[name].critic


def trainer_of(config: Any, settings: Hyperparameters, folder: Path) -> tuple[Trainer, ModelShape]:
    model = make_model(config, 1, folder)
    return Trainer(Policy(model, settings), algorithm(settings.algorithm), settings), shape_of(config, folder)


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "fira", "dct_adamw"])
@pytest.mark.parametrize("name", ["qwen3-tied", "mixtral"])
def test_bytes_of_the_optimizer(name: str, optimizer: str, tmp_path: Path) -> None:
    settings = hyperparameters(optimizer=optimizer, optimizer_rank=8)
    trainer, shape = trainer_of(CONFIGS[name], settings, tmp_path)
    held = trainer.optimizers["policy"].optimizer
    measured = sum(t.nbytes for state in held.state.values() for t in state.values() if t.ndim)
    planned = learner_parts(shape, settings, 4)["optimizer"]
    bases = 4 * sum(size**2 for size in BASES[name]) if optimizer == "dct_adamw" else 0
    assert planned == measured + bases


MAX_OVER = 1.25
"""A plan may exceed what was measured by this factor, and must not fall below it."""
STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "critic-and-reference": {"algorithm": "ppo", "kl_coefficient": 0.1, "minibatches": 1},
    "adapters": {"lora_rank": 4},
    "low-rank": {"optimizer": "fira", "optimizer_rank": 8},
    "bfloat16": {"learner_precision": "bfloat16"},
    "bfloat16-checkpointing": {"learner_precision": "bfloat16", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", ["qwen3", "qwen3-tied", "qwen3-moe", "llama"])
def test_bytes_of_a_training_step(name: str, kind: str, tmp_path: Path) -> None:
    settings = hyperparameters(token_budget=512, max_context=32, **STEPS[kind])
    assert SIZES["vocab_size"] > VOCAB
    trainer, shape = trainer_of(CONFIGS[name], settings, tmp_path)
    groups = [random_group(i) for i in range(24)]
    held = sum(t.nbytes for t in {id(t): t for t in state_of(trainer)}.values())
    if settings.lora_rank is not None:
        held += sum(p.nbytes for p in trainer.policy.model.parameters() if not p.requires_grad)
    if settings.kl_coefficient:
        held += 4 * numbers(shape.parameters())
    with Allocated() as step:
        trainer.step(groups, 0)
    trainer.ranks.close()
    compute = 2 if settings.learner_precision == "bfloat16" else 4
    measured, planned = held + step.peak, sum(learner_parts(shape, settings, compute).values())
    assert 1.0 <= planned / measured <= MAX_OVER


def test_saved_bytes_are_those_of_a_layer(tmp_path: Path) -> None:
    """Token by token, of one layer in float32, as autograd keeps them."""
    for name, config in CONFIGS.items():
        shape = shape_of(config, tmp_path / name)
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        own = {p.untyped_storage().data_ptr() for p in built.parameters()}
        tokens = 64
        positions = built.base_model.rotary_emb(torch.zeros(1, tokens, 48), torch.arange(tokens)[None])
        shared = own | {t.untyped_storage().data_ptr() for t in positions}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, shared: set[int] = shared, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in shared:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hidden = torch.randn(1, tokens, 48, requires_grad=True)
        layer = built.base_model.layers[0]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(hidden, position_embeddings=positions, attention_mask=None)
        measured = sum(t.untyped_storage().nbytes() for t in kept.values()) / tokens
        sparse = shape.layers[0][0]
        planned = learner_memory.saved_by_layer(shape, sparse, 4)
        assert math.isclose(planned, measured, rel_tol=0.02), (name, planned, measured)
