"""A tiny random model, and trainers of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from transformers import Qwen3ForCausalLM

from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.training.tiny_models import qwen3_config
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
    config = qwen3_config(VOCAB, 32)
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
