"""What the engines' fixtures and tests share: weights as model and as folder, an engine, its configuration."""

from __future__ import annotations

import importlib
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from headrace_learner.models import lora
from headrace_rollout.engines.engine import Engine, EngineConfig, UpdateMode, UpdateReport

from . import tiny_model

MAX_RUNNING = 16
ADAPTER_RANK = 4


@dataclass
class Weights:
    """The same weights as a torch model and as a folder."""

    model: Qwen3ForCausalLM
    folder: Path


@dataclass
class Subject:
    """An engine under test, and what it has been told to be."""

    engine: Engine
    weights: dict[str, Weights]
    history: dict[int, str] = field(default_factory=dict)
    """Version to the name of its weights."""

    async def become(self, name: str, mode: UpdateMode = "recompute") -> UpdateReport:
        """Update to the weights `name`, as the next version."""
        version = self.engine.version + 1
        self.history[version] = name
        return await self.engine.update(version, self.weights[name].folder, mode)

    def model(self, version: int) -> Qwen3ForCausalLM:
        return self.weights[self.history[version]].model


def adapted(folder: Path, seed: int, only: str = "") -> Weights:
    """An adapter of the model `first`, as the learner publishes it, not zero in the layers with `only` in their name;
    and the plain model that it makes of `first`."""
    trained, plain = tiny_model.tiny_model(seed=11), tiny_model.tiny_model(seed=11)
    lora.attach(trained, ADAPTER_RANK, alpha=8.0, seed=seed)
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in trained.named_parameters():
        if ".lora_B." in name and only in name:
            torch.nn.init.normal_(parameter, std=0.4, generator=chance)
    folder.mkdir()
    lora.write_adapter(trained, folder)
    plain.load_state_dict(lora.merged(trained))
    return Weights(plain, folder)


def cut_short(folder: Path, damaged: Path) -> Path:
    """A copy of a version's folder in which one tensor of the second layer is missing."""
    shutil.copytree(folder, damaged, dirs_exist_ok=True)
    (file,) = damaged.glob("*.safetensors")
    tensors = load_file(file)
    del tensors[max(name for name in tensors if "layers.1.mlp.up_proj" in name)]
    save_file(tensors, file)
    return damaged


def engine_config(weights: dict[str, Weights]) -> EngineConfig:
    return EngineConfig(
        model=weights["first"].folder,
        version=3,
        max_model_len=tiny_model.CONTEXT,
        max_running=MAX_RUNNING,
        kv_cache_gib=0.125,
        distributions=True,
    )


def import_vllm() -> None:
    """Importing vLLM raises deprecation warnings of its own and of torch: tolerated here, and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("vllm.engine.arg_utils")
        importlib.import_module("vllm.v1.engine.async_llm")
