"""Models for benchmarks: real architectures with random weights, because speed does not depend on the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_config() -> Any:
    """A Qwen3 configuration with under a million parameters, and no end-of-text token."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )


def smollm2_config() -> Any:
    """The configuration of SmolLM2-135M without its end-of-text token, so that all completions have full length."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )


def make_model(config: Any, seed: int, folder: Path) -> Path:
    """Write a float32 model with random weights to `folder`, and return that."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
