"""Engines for the contract suite: each kind is started once a session, on a tiny random Qwen3 model.

transformers, vllm   versions are whole weights, and one adapter, which is merged
vllm-slot            every version is an adapter, in the slot of vLLM's LoRA layers
vllm-tp2             vllm with its weights split over two processes
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from headrace_rollout.engines import create

from . import tiny_model
from .engine_cases import ADAPTER_RANK, Subject, Weights, adapted, engine_config, import_vllm


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
    whole = {name: Weights(model, tiny_model.save(model, root / name)) for name, model in models.items()}
    return whole | {"adapter": adapted(root / "adapter", seed=1)}


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """As `weights`, each an adapter of its `first`; only what the last layer adds at last comes after all caches."""
    root = tmp_path_factory.mktemp("adapters")
    layers = {"first": "none of them", "second": "", "adapter": ""}
    layers |= {f"norm{i}": "layers.1.mlp.down_proj" for i in range(3)}
    return {name: adapted(root / name, seed, only) for seed, (name, only) in enumerate(layers.items())}


SETTINGS: dict[str, dict[str, Any]] = {
    "vllm-slot": {"lora_rank": ADAPTER_RANK, "adapters": "slot"},
    "vllm-tp2": {"tensor_parallel_size": 2},
}
ENGINES = [
    pytest.param("transformers", id="transformers"),
    pytest.param("vllm", id="vllm", marks=pytest.mark.vllm),
    *(pytest.param(kind, id=kind, marks=pytest.mark.vllm) for kind in SETTINGS),
]


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=ENGINES)
async def subject(
    request: pytest.FixtureRequest, weights: dict[str, Weights], adapters: dict[str, Weights]
) -> AsyncIterator[Subject]:
    name = request.param.partition("-")[0]
    if name == "vllm":
        import_vllm()
    config = dataclasses.replace(engine_config(weights), **SETTINGS.get(request.param, {}))
    engine = create(name, config)
    await engine.start()
    yield Subject(engine, weights if config.lora_rank is None else adapters, {config.version: "first"})
    await engine.close()


@pytest.fixture
def prompt() -> npt.NDArray[np.int32]:
    return np.random.default_rng(5).integers(2, tiny_model.VOCABULARY, size=24, dtype=np.int32)
