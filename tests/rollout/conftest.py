"""Engines for the contract suite: each kind is started once a session, on a tiny random Qwen3 model."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
import tiny_model
from transformers import Qwen3ForCausalLM

from headrace_rollout.engines import create
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


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """`first` and `second` differ everywhere; `norm0`…`norm2` only after the last cache entry: in the final norm."""
    models = {"first": tiny_model.tiny_model(seed=11), "second": tiny_model.tiny_model(seed=12)}
    for index in range(3):
        model = tiny_model.tiny_model(seed=11)
        scale = 0.5 + np.random.default_rng(index).random(model.config.hidden_size, dtype=np.float32)
        model.model.norm.weight.data.mul_(tiny_model.torch.from_numpy(scale))
        models[f"norm{index}"] = model
    root = tmp_path_factory.mktemp("weights")
    return {name: Weights(model, tiny_model.save(model, root / name)) for name, model in models.items()}


def engine_config(weights: dict[str, Weights]) -> EngineConfig:
    return EngineConfig(
        model=weights["first"].folder,
        version=3,
        max_model_len=tiny_model.CONTEXT,
        max_running=MAX_RUNNING,
        kv_cache_gib=0.125,
    )


ENGINES = [
    pytest.param("transformers", id="transformers"),
    pytest.param("vllm", id="vllm", marks=pytest.mark.vllm),
]


def import_vllm() -> None:
    """Importing vLLM raises deprecation warnings of its own and of torch: tolerated here, and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("vllm.engine.arg_utils")
        importlib.import_module("vllm.v1.engine.async_llm")


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=ENGINES)
async def subject(request: pytest.FixtureRequest, weights: dict[str, Weights]) -> AsyncIterator[Subject]:
    if request.param == "vllm":
        import_vllm()
    config = engine_config(weights)
    engine = create(request.param, config)
    await engine.start()
    yield Subject(engine, weights, {config.version: "first"})
    await engine.close()


@pytest.fixture
def prompt() -> npt.NDArray[np.int32]:
    return np.random.default_rng(5).integers(2, tiny_model.VOCABULARY, size=24, dtype=np.int32)
