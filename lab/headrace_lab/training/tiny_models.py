"""Models with random weights, for tests, and for benchmarks: speed does not depend on the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def qwen3_config(vocabulary: int, hidden: int, context: int = 64, **changes: Any) -> Any:
    """A `Qwen3Config` of 2 layers, with 2 heads of width 32 over one key-value head, and tied embeddings.

    `changes`: its other fields, by transformers' names.
    """
    from transformers import Qwen3Config

    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    return Qwen3Config(**{**shape, **sizes, "max_position_embeddings": context, "tie_word_embeddings": True, **changes})


def tiny_config() -> Any:
    """A Qwen3 configuration with under a million parameters, and no end-of-text token."""
    shape = {"intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    return qwen3_config(128, 128, context=2048, eos_token_id=None, bos_token_id=None, **shape)


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
