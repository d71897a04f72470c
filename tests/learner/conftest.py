"""A tiny random model, and trainers of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from transformers import Qwen3Config, Qwen3ForCausalLM

from headrace_gateway.service.embedded_redis import RedisServer
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer

from .bench import Bench
from .cases import VOCAB, hyperparameters


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 2 layers with random weights, in the Hugging Face format."""
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def make_trainer(model_folder: Path) -> Callable[..., Trainer]:
    """A fresh trainer on the model; keyword arguments are hyperparameters."""

    def make(**given: object) -> Trainer:
        torch.manual_seed(0)
        settings = hyperparameters(**given)
        return Trainer(Policy(model_folder, settings), algorithm(settings.algorithm), settings)

    return make


@pytest.fixture
async def bench(redis: Redis, redis_server: RedisServer, model_folder: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(name: str, **settings: object) -> Bench:
        return Bench(redis, redis_server.url, model_folder, tmp_path, name, **settings)

    return make
