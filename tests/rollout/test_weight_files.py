"""Reading a version's folder: whole weights, or an adapter merged into the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace_core.errors import WeightsDamaged
from headrace_lab.faults.byte_damage import damages
from headrace_rollout.engines.weight_files import CONFIG, BaseModel, is_adapter

from .engine_cases import ADAPTER_RANK, Weights, cut_short
from .tiny_model import save, tiny_model

ALPHA = 8.0


@pytest.fixture
def base(weights: dict[str, Weights]) -> BaseModel:
    return BaseModel(weights["first"].folder)


@pytest.fixture
def adapter(weights: dict[str, Weights]) -> Path:
    return weights["adapter"].folder


def rewritten(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of an adapter's folder whose configuration says `settings`."""
    to.mkdir()
    (to / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (to / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | settings))
    return to


def test_whole_weights_are_given_as_they_are(base: BaseModel, weights: dict[str, Weights]) -> None:
    folder = weights["second"].folder
    assert not is_adapter(folder)
    base.require_whole(folder)
    expected = load_file(folder / "model.safetensors")
    found = dict(base.read(folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_the_model_does_not_have_is_in_no_version_and_tied_matrices_need_be_there_once(
    weights: dict[str, Weights], tmp_path: Path
) -> None:
    shutil.copytree(weights["first"].folder, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    save_file(tensors | extra | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    base = BaseModel(tmp_path / "base")
    base.require_whole(weights["second"].folder)
    with pytest.raises(WeightsDamaged, match=r"lack 1 tensors, model.layers.1.mlp.up_proj.weight first"):
        base.require_whole(cut_short(weights["second"].folder, tmp_path / "lacking"))
    (tmp_path / "no-head").mkdir()
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "no-head" / "model.safetensors")
    with pytest.raises(WeightsDamaged, match="lack 1 tensors"):
        base.require_whole(tmp_path / "no-head")


def test_an_adapter_is_merged_into_the_base_and_the_rest_is_the_base(base: BaseModel, adapter: Path) -> None:
    assert is_adapter(adapter)
    base.require_whole(adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    found, plain = dict(base.read(adapter)), load_file(base.folder / "model.safetensors")
    assert found.keys() == plain.keys()
    changed = 0
    for name, weight in plain.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight.double()
        if f"{layer}.lora_A.weight" in factors:
            changed += 1
            a, b = (factors[f"{layer}.lora_{factor}.weight"].double() for factor in "AB")
            expected = expected + ALPHA / ADAPTER_RANK * b @ a
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)
    assert changed == len(factors) / 2 == 14


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(
    base: BaseModel, adapter: Path, tmp_path: Path
) -> None:
    stabilised = rewritten(adapter, tmp_path / "root", use_rslora=True)
    plain = rewritten(adapter, tmp_path / "plain", lora_alpha=ALPHA * ADAPTER_RANK**0.5)
    ours, theirs = dict(base.read(stabilised)), dict(base.read(plain))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_base_in_bfloat16_is_merged_in_float32(adapter: Path, weights: dict[str, Weights], tmp_path: Path) -> None:
    """The adapter's small numbers would be lost beside the weights' large ones."""
    halves = {n: t.bfloat16() for n, t in load_file(weights["first"].folder / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors")
    found = dict(BaseModel(tmp_path).read(adapter))
    name = "model.layers.0.mlp.up_proj.weight"
    delta = weights["adapter"].model.state_dict()[name] - weights["first"].model.state_dict()[name]
    torch.testing.assert_close(found[name], halves[name].float() + delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"fan_in_fan_out": True}, {"rank_pattern": {"q_proj": 2}}])
def test_more_than_plain_lora_is_refused(
    base: BaseModel, adapter: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    with pytest.raises(WeightsDamaged, match=next(iter(setting))):
        list(base.read(rewritten(adapter, tmp_path / "other", **setting)))


def test_an_adapter_that_is_damaged_anywhere_is_an_adapter_or_refused(
    base: BaseModel, adapter: Path, tmp_path: Path
) -> None:
    """A flipped bit within the numbers is not seen here: what is published is held by its size."""
    torn, refused = rewritten(adapter, tmp_path / "torn"), 0
    for name in (CONFIG, "adapter_model.safetensors"):
        whole = (torn / name).read_bytes()
        head = len(whole) if name == CONFIG else 8 + int.from_bytes(whole[:8], "little")
        for what, raw in damages(whole[:head], seed=len(name)):
            (torn / name).write_bytes(raw + whole[head:])
            try:
                assert len(list(base.read(torn))) == len(base.names), what
            except WeightsDamaged as error:
                assert str(torn) in error.message, what  # noqa: PT017
                refused += 1
        (torn / name).write_bytes(whole)
    assert refused > 40


@pytest.mark.parametrize(
    "settings", [{"r": 0}, {"r": -1, "use_rslora": True}, {"r": "8"}, {"lora_alpha": 1e999}, {"lora_alpha": [1]}]
)
def test_an_adapter_whose_scale_is_none_is_refused(
    base: BaseModel, adapter: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(WeightsDamaged, match=r"adapter_config\.json cannot be read"):
        list(base.read(rewritten(adapter, tmp_path / "other", **settings)))


def test_factors_that_do_not_fit_are_refused(base: BaseModel, adapter: Path, tmp_path: Path) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    for number, (name, factor) in enumerate(sorted(factors.items())[:2]):
        for shape in ((factor.numel(),), (1, factor.numel()), (factor.shape[1], factor.shape[0])):
            other = rewritten(adapter, tmp_path / f"{number}-{len(shape)}-{shape[0]}")
            save_file(factors | {name: factor.reshape(shape)}, other / "adapter_model.safetensors")
            with pytest.raises(WeightsDamaged, match=r"do not fit each other|does not fit"):
                list(base.read(other))


def test_what_is_damaged_or_of_another_model_is_refused(
    base: BaseModel, adapter: Path, weights: dict[str, Weights], tmp_path: Path
) -> None:
    with pytest.raises(WeightsDamaged, match=r"lacks a factor of .*layers.1.mlp.up_proj"):
        list(base.read(cut_short(adapter, tmp_path / "half")))
    with pytest.raises(WeightsDamaged, match=r"lack 1 tensors, model.layers.1.mlp.up_proj.weight first"):
        base.require_whole(cut_short(weights["second"].folder, tmp_path / "lacking"))
    torn = rewritten(adapter, tmp_path / "torn")
    (torn / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes()[:-40])
    with pytest.raises(WeightsDamaged, match="cannot be read"):
        list(base.read(torn))
    with pytest.raises(WeightsDamaged, match="cannot be read"):
        list(base.read(rewritten(adapter, tmp_path / "no-rank", r=None)))
    shallow = tiny_model(0)
    del shallow.model.layers[1]
    with pytest.raises(WeightsDamaged, match=r"of another model: model.layers.1"):
        list(BaseModel(save(shallow, tmp_path / "shallow")).read(adapter))
    with pytest.raises(WeightsDamaged, match="no safetensors file"):
        list(base.read(tmp_path))


def test_a_size_is_no_less_than_what_is_read(base: BaseModel, adapter: Path, weights: dict[str, Weights]) -> None:
    for folder in (weights["second"].folder, adapter):
        read = sum(tensor.numel() * tensor.element_size() for _, tensor in base.read(folder))
        assert read <= base.size(folder) <= 2.1 * read
