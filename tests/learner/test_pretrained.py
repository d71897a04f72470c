"""Loaded without ever being whole in two places: the same tensors as `from_pretrained`, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from headrace_core.errors import InvalidRequest
from headrace_learner.models.critic import Critic
from headrace_learner.models.policy import Policy

from .pretrained_cases import CHECKPOINTS, change_tensors, save_model


@pytest.mark.filterwarnings("ignore:The tied weights")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_is_that_of_from_pretrained(tmp_path: Path, name: str) -> None:
    folder = CHECKPOINTS[name](tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = Policy(folder).model
    assert type(found) is type(expected)
    for wanted, loaded in (
        (expected.state_dict(), found.state_dict()),
        (dict(expected.named_buffers()), dict(found.named_buffers())),
    ):
        assert loaded.keys() == wanted.keys()
        assert all(torch.equal(loaded[tensor], wanted[tensor]) for tensor in wanted)
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in expected.parameters())  # ties
    assert all(p.dtype == torch.float32 for p in found.parameters())
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in expected.parameters()]


@pytest.mark.parametrize("name", ["tied", "mixtral", "gemma3"])
def test_a_critic_has_the_layers_alone(tmp_path: Path, name: str) -> None:
    folder = CHECKPOINTS[name](tmp_path)
    expected = AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    found = Critic(folder).net.base.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


def _lacking(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.experts.2.gate_proj.weight"]


def _dense_lacking(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.q_proj.weight"]


def _of_another_shape(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(3)


def _quantized(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        ("qwen3_moe", _lacking, r"experts\.gate_up_proj is made of 4 tensors each, and the files hold 3 of"),
        (
            "tied",
            _dense_lacking,
            r"lack 2 of the model's tensors, model\.layers\.0\.self_attn\.q_proj\.weight, model\.norm",
        ),
        ("tied", _of_another_shape, r"model\.norm\.weight has the shape \[3\] in its file, and \[32\]"),
        ("tied", _quantized, r"q_proj\.weight is quantized"),
    ],
)
def test_files_that_are_not_the_models_are_refused(
    tmp_path: Path, model: str, change: Callable[[dict[str, Tensor]], None], says: str
) -> None:
    folder = save_model(model, tmp_path)
    change_tensors(folder, change)
    with pytest.raises(InvalidRequest, match=says):
        Policy(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = save_model("tied", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        Policy(folder)
