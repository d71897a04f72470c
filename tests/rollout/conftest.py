"""Engines for the contract suite: each kind is started once a session, on a tiny random Qwen3 model."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
import tiny_model
from engine_cases import Subject, Weights, engine_config, import_vllm

from headrace_rollout.engines import create


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


ENGINES = [
    pytest.param("transformers", id="transformers"),
    pytest.param("vllm", id="vllm", marks=pytest.mark.vllm),
]


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
