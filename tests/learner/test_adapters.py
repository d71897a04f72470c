"""Adapters against PEFT itself, which loads what we wrote, and against plain models with W + (alpha / rank) · B A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

from headrace_core.errors import InvalidRequest
from headrace_learner.models import lora

from .cases import VOCAB

RANK, ALPHA = 4, 6.0
LINEAR_SHAPES = [(64, 32), (32, 32), (32, 32), (32, 64), (64, 32), (64, 32), (32, 64)]
"""[out, in] of q, k, v, o, gate, up and down in each layer of the tests' model."""


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture
def plain(model_folder: Path) -> Any:
    return base(model_folder)


@pytest.fixture
def model(model_folder: Path) -> Any:
    """An attached model whose adapters have been trained."""
    made = base(model_folder)
    lora.attach(made, RANK, ALPHA, seed=1)
    train(made)
    return made


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (-model(TOKENS).logits.log_softmax(-1)[..., 3].mean()).backward()
        optimizer.step()


TOKENS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(plain: Any, model_folder: Path) -> None:
    attached = base(model_folder)
    lora.attach(attached, RANK, ALPHA, seed=1)
    assert type(attached) is Qwen3ForCausalLM
    assert type(attached.get_output_embeddings()) is torch.nn.Linear
    torch.testing.assert_close(logits(attached), logits(plain), rtol=0, atol=0)
    trained = {name: p for name, p in attached.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert sum(p.numel() for p in trained.values()) == 2 * sum(RANK * (o + i) for o, i in LINEAR_SHAPES)


def test_training_moves_the_adapter_and_leaves_the_base(model: Any, plain: Any) -> None:
    assert (logits(model) - logits(plain)).abs().max() > 0.1
    kept = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if not p.requires_grad}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(kept[name], parameter, rtol=0, atol=0)


def test_the_seed_alone_decides_the_first_adapter_and_no_random_state_is_spent(model_folder: Path) -> None:
    drawn: list[dict[str, Tensor]] = []
    for seed, spent in ((1, 0), (1, 100), (2, 0)):
        made = base(model_folder)
        torch.manual_seed(spent)
        before = torch.get_rng_state()
        lora.attach(made, RANK, ALPHA, seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append({name: p for name, p in made.named_parameters() if ".lora_A." in name})
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_disabled_is_the_base_model_and_ends_with_an_error_too(model: Any, plain: Any) -> None:
    trained, adapted = [p.requires_grad for p in model.parameters()], logits(model)
    with lora.disabled(model):
        torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    with pytest.raises(IndexError), lora.disabled(model):
        model(torch.tensor([[VOCAB]]))
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=0)
    assert [p.requires_grad for p in model.parameters()] == trained


def test_gradients_are_the_same_whether_or_not_the_reference_was_asked_in_between(model: Any) -> None:
    found: list[dict[str, Tensor]] = []
    for asked in (False, True):
        model.zero_grad()
        loss = model(TOKENS).logits.log_softmax(-1)[..., 3].mean()
        if asked:
            with lora.disabled(model), torch.no_grad():
                model(TOKENS)
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0)


def test_peft_loads_what_was_written(model: Any, plain: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    lora.write_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)
    assert {f.name for f in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}


def test_a_merged_model_is_plain_and_computes_the_same(model: Any, plain: Any) -> None:
    merged = lora.merged(model)
    assert merged.keys() == plain.state_dict().keys()
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = plain.state_dict()[f"{name}.weight"].double() + ALPHA / RANK * b.double() @ a.double()
    torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, rtol=0, atol=1e-6)
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)


def test_a_model_that_was_never_attached_is_its_own_merge(plain: Any) -> None:
    merged = lora.merged(plain)
    assert merged.keys() == plain.state_dict().keys()
    assert all(merged[name].data_ptr() == tensor.data_ptr() for name, tensor in plain.state_dict().items())


def test_a_state_that_was_gathered_elsewhere_is_written_and_merged(model: Any, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = lora.merged(model)
    train(model, steps=1)
    old = lora.merged(model, state)
    assert all(torch.equal(old[name], tensor) for name, tensor in merged.items())
    lora.write_adapter(model, tmp_path, state)
    for name, tensor in load_file(tmp_path / lora.ADAPTER).items():
        ours = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert torch.equal(tensor, state[ours])


def test_a_model_without_linear_layers_is_refused() -> None:
    """GPT-2's layers are convolutions of width 1."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(InvalidRequest, match="lora_rank"):
        lora.attach(model, RANK, ALPHA, seed=1)
