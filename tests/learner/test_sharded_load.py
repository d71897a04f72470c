"""Ranks load their own part of a model, never the whole, and compute in the precision that a job asks for.

Two processes over gloo load every checkpoint of `pretrained_cases`, and train one of several layers in bfloat16; what
they saw is in files (`sharded_load_cases`). A model of 32 billion parameters is sharded eight ways without its memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from headrace_learner.models.policy import Policy

from .pretrained_cases import CHECKPOINTS, SMALL
from .rank_cases import in_ranks
from .sharded_load_cases import a_batch, load_all, observe, shard_32b

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that two ranks have loaded, and what they say of each."""
    folders = tmp_path_factory.mktemp("models")
    for name, save in CHECKPOINTS.items():
        save(folders / name)
    in_ranks(2, load_all, folders)
    return folders


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_shards_together_are_the_tensors_of_from_pretrained(loaded: Path, name: str) -> None:
    seen = [json.loads((loaded / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    assert [rank["wrong"] for rank in seen] == [[], []]
    assert [rank["whole"] for rank in seen] == [[], []]
    assert sum(rank["numbers"] for rank in seen) == seen[0]["all"]
    with torch.no_grad():
        alone = Policy(loaded / name).logprobs(a_batch(), 0.8)
    for rank in range(2):
        torch.testing.assert_close(load_file(loaded / f"{name}-{rank}.safetensors")["logprobs"], alone)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]]]:
    """Bytes of a model of 24 layers in float32, and what each of two ranks saw."""
    folder = tmp_path_factory.mktemp("observed")
    model = Qwen3ForCausalLM(Qwen3Config(**(SMALL | {"num_hidden_layers": 24})))
    model.save_pretrained(folder / "model")
    in_ranks(2, observe, folder / "model", folder)
    whole = sum(p.numel() for p in model.parameters()) * 4
    return whole, [json.loads((folder / f"observed-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.timeout(300)
def test_no_rank_ever_holds_the_whole_model(observed: tuple[int, list[dict[str, Any]]]) -> None:
    """Half of it is its own; beside that, a layer and what is outside of layers, while logits are checked, or weights
    are written."""
    whole, ranks = observed
    for rank in ranks:
        for name in ("loading", "publishing", "exporting"):
            assert 0.5 * whole < rank[name] < 0.75 * whole


def test_bfloat16_is_gathered_and_float32_is_summed_and_kept(observed: tuple[int, list[dict[str, Any]]]) -> None:
    for rank in observed[1]:
        assert rank["carried"]["c10d::_allgather_base_"] == ["torch.bfloat16"]
        assert rank["carried"]["c10d::_reduce_scatter_base_"] == ["torch.float32"]
        assert rank["products"] == ["torch.bfloat16"]
        assert rank["masters"] == ["torch.float32"]


def test_nothing_is_autocast(observed: tuple[int, list[dict[str, Any]]]) -> None:
    """Its copies of the weights would live until the backward pass."""
    assert [rank["autocast"] for rank in observed[1]] == [[False], [False]]


@pytest.mark.timeout(300)
def test_of_32_billion_parameters_a_rank_of_eight_holds_an_eighth(tmp_path: Path) -> None:
    """Of weights and moments, counted on meta tensors under a fake process group."""
    in_ranks(1, shard_32b, tmp_path)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["parameters"] == pytest.approx(32.76e9, rel=0.001)
    eighth = 4 * seen["parameters"] / 8
    assert seen["weights"] == pytest.approx(eighth, rel=0.1)
    assert seen["optimizer"] == pytest.approx(2 * eighth, rel=0.1)
