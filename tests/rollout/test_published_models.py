"""Models whose files differ from what the library keeps in memory, from the learner into vLLM: the same greedy tokens.

files ──► the learner loads, and moves the weights ──► publishes ──► vLLM, which had the files' weights, updates
                                 └► writes the model ──► transformers ──► what vLLM must sample
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_learner.models.policy import Policy
from headrace_rollout.engines.engine import EngineConfig, SamplingConfig
from headrace_rollout.engines.vllm.engine import VllmEngine

from .engine_cases import import_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

SMALL: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 129, "initializer_range": 0.25},
    **{"eos_token_id": None, "bos_token_id": None, "pad_token_id": None},
}
MODELS: dict[str, tuple[Any, Any]] = {
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2),
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
    "tied, extra tensor": (Qwen3ForCausalLM, Qwen3Config(**SMALL, tie_word_embeddings=True)),
}
GREEDY = SamplingConfig(max_tokens=32, temperature=0.0)
PROMPT = np.array([5, 9, 33, 2, 17], np.int32)


@pytest.fixture(scope="module", autouse=True)
def imported_vllm() -> Iterator[None]:
    import_vllm()
    yield
    gc.collect()


def saved(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    kind(config).save_pretrained(folder)
    if "extra" in name:
        file = folder / "model.safetensors"
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}  # of older checkpoints; both ignore it
        save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    return folder


def moved(folder: Path) -> Policy:
    """A policy some way from the weights in `folder`."""
    policy = Policy(folder, Hyperparameters.model_validate({"engine": "vllm"}))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=chance)
    return policy


def greedy(folder: Path) -> list[int]:
    """What transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.as_tensor(PROMPT, dtype=torch.long)[None]
    return [int(t) for t in model.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0)[0, len(PROMPT) :]]


@pytest.mark.parametrize(
    ("name", "processes"), [("qwen3_moe", 1), ("qwen3_moe", 2), ("mixtral", 1), ("tied, extra tensor", 2)]
)
async def test_published_weights_sample_what_the_model_says(name: str, processes: int, tmp_path: Path) -> None:
    base = saved(name, tmp_path / "base")
    policy = moved(base)
    policy.write_model(tmp_path / "model")
    (tmp_path / "published").mkdir()
    policy.write_weights(tmp_path / "published")
    before, after = greedy(base), greedy(tmp_path / "model")
    assert before != after
    engine = VllmEngine(
        EngineConfig(
            base,
            max_model_len=128,
            max_running=4,
            kv_cache_gib=0.05,
            threads=processes,
            tensor_parallel_size=processes,
        )
    )
    await engine.start()
    try:
        assert (await engine.generate(PROMPT, GREEDY)).token_ids.tolist() == before
        await engine.update(1, tmp_path / "published", "recompute")
        assert (await engine.generate(PROMPT, GREEDY)).token_ids.tolist() == after
    finally:
        await engine.close()
