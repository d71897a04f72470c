"""What the engines' fixtures and tests share: weights as model and as folder, an engine, its configuration."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import tiny_model
from transformers import Qwen3ForCausalLM

from headrace_rollout.engines.base import Engine, EngineConfig, UpdateMode, UpdateReport

MAX_RUNNING = 16


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


def engine_config(weights: dict[str, Weights]) -> EngineConfig:
    return EngineConfig(
        model=weights["first"].folder,
        version=3,
        max_model_len=tiny_model.CONTEXT,
        max_running=MAX_RUNNING,
        kv_cache_gib=0.125,
    )


def import_vllm() -> None:
    """Importing vLLM raises deprecation warnings of its own and of torch: tolerated here, and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("vllm.engine.arg_utils")
        importlib.import_module("vllm.v1.engine.async_llm")
