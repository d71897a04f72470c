"""Weights that are written as they are gathered: what safetensors reads, whatever is in it, or an error at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from headrace_learner.models.weight_files import Tensors, write

MODEL: Tensors = {
    "model.embed.weight": torch.randn(7, 3),
    "model.layers.0.norm.weight": torch.randn(3, dtype=torch.float64),
    "model.layers.0.up.weight": torch.randn(5, 3).T,
    "model.layers.0.count": torch.tensor(41),
    "model.layers.1.up.weight": torch.randn(3, 5),
    "model.layers.1.empty": torch.zeros(0, 4),
    "model.norm.weight": torch.randn(1),
}


def same(layer: Tensors) -> Tensors:
    return layer


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    tied = MODEL | {"lm_head.weight": MODEL["model.embed.weight"]}
    write(tmp_path / "model.safetensors", tied.items(), torch.float32, same)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == MODEL.keys(), "tied tensors are there once, by their first name"
    for name, tensor in MODEL.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_of_several_sizes_begin_at_multiples_of_their_own(tmp_path: Path) -> None:
    """As bfloat16, the last would move others to odd places, from which nobody reads float32."""

    def mixed(layer: Tensors) -> Tensors:
        return {n: t.bfloat16() if t.is_floating_point() and t.numel() % 2 else t for n, t in layer.items()}

    write(tmp_path / "model.safetensors", MODEL.items(), torch.float32, mixed)
    found = load_file(tmp_path / "model.safetensors")
    assert {t.element_size() for t in found.values()} == {2, 4, 8}
    assert all(torch.equal(found[name].float(), mixed({name: t.float()})[name].float()) for name, t in MODEL.items())
    assert all(t.data_ptr() % t.element_size() == 0 for t in found.values())


def test_a_layer_is_converted_as_one(tmp_path: Path) -> None:
    """Two of its tensors become one, and one becomes two."""

    def joined(layer: Tensors) -> Tensors:
        if "model.layers.0.norm.weight" not in layer:
            return layer
        left, right = layer.pop("model.layers.0.up.weight").split([1, 2])
        norm, count = layer.pop("model.layers.0.norm.weight"), layer.pop("model.layers.0.count")
        return {"0.left": left, "0.right": right, "0.norm": norm + count} | layer

    write(tmp_path / "model.safetensors", MODEL.items(), torch.float32, joined)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["0.right"], MODEL["model.layers.0.up.weight"][1:])
    assert torch.equal(found["0.norm"], MODEL["model.layers.0.norm.weight"].float() + 41)
    assert torch.equal(found["model.layers.1.up.weight"], MODEL["model.layers.1.up.weight"])


def test_a_disk_that_is_full_is_an_error_once_all_is_gathered(tmp_path: Path) -> None:
    """Other ranks take part in every gathering: one that is left out would leave them waiting."""
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    layers = {f"layers.{i}.weight": torch.ones(1 << 14) for i in range(6)}
    gathered: list[Tensor] = []

    def noted(layer: Tensors) -> Tensors:
        gathered.extend(tensor for tensor in layer.values() if not tensor.is_meta)
        return layer

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "model.safetensors", layers.items(), torch.float32, noted)
    assert len(gathered) == 6


def test_a_rank_without_a_path_writes_nothing(tmp_path: Path) -> None:
    write(None, MODEL.items(), torch.float32, same)
    assert not list(tmp_path.iterdir())
