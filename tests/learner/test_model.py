"""Log-probabilities of a packed batch, memory traded for time, and files that load elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from headrace_learner.algorithms.batch import MicroBatch, build_step_batch
from headrace_learner.models.policy import Policy

from .cases import VOCAB, hyperparameters, random_group
from .pretrained_cases import RENAMED, save_model


def a_batch() -> MicroBatch:
    (minibatch,) = build_step_batch(
        [random_group(i) for i in range(3)], 0, hyperparameters(token_budget=4096)
    ).minibatches
    return minibatch.micro_batches[0]


def gradients(policy: Policy) -> list[Tensor]:
    parameters = list(policy.model.parameters())
    return list(torch.autograd.grad(policy.logprobs(a_batch(), 0.8).square().sum(), parameters))


def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradients(model_folder: Path) -> None:
    def run(checkpointed: bool) -> tuple[list[Tensor], int]:
        policy = Policy(model_folder, hyperparameters(gradient_checkpointing=checkpointed))
        passes: list[None] = []
        policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(None))
        return gradients(policy), len(passes)

    (plain, once), (checkpointed, twice) = run(False), run(True)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_dropout_of_a_configuration_is_switched_off(model_folder: Path, tmp_path: Path, checkpointed: bool) -> None:
    """Also in training mode, where gradient checkpointing needs it."""
    folder = tmp_path / "dropping"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    dropping = Policy(folder, hyperparameters(gradient_checkpointing=checkpointed))
    for a, b in zip(gradients(dropping), gradients(Policy(model_folder)), strict=True):
        assert torch.equal(a, b)


def test_whatever_a_model_drops_is_switched_off(tmp_path: Path) -> None:
    """OPT drops states, attention and whole layers, by three names."""
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.5, attention_dropout=0.5, layerdrop=0.9,
    )  # fmt: skip
    torch.manual_seed(3)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    expected = gradients(Policy(tmp_path))
    training = Policy(tmp_path, hyperparameters(gradient_checkpointing=True))
    assert training.model.training
    assert all(torch.equal(a, b) for a, b in zip(gradients(training), expected, strict=True))


def test_padding_is_invisible(model_folder: Path) -> None:
    policy, batch = Policy(model_folder), a_batch()
    with torch.no_grad():
        together = policy.logprobs(batch, 1.0)
        ids = batch.inputs_BT[-1]  # the shortest, hence the most padded
        own = batch.rows_N == batch.rows_N.max()
        length = int(batch.positions_N[own].max()) + 1
        logits = policy.model(input_ids=ids[None, :length]).logits[0, batch.positions_N[own]]
    alone = torch.log_softmax(logits, -1).gather(1, batch.targets_N[own, None])[:, 0]
    torch.testing.assert_close(together[own], alone, rtol=1e-5, atol=1e-5)


def test_published_weights_are_the_tied_ones_once(model_folder: Path, tmp_path: Path) -> None:
    policy = Policy(model_folder)
    policy.write_weights(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == policy.parameters
    assert "lm_head.weight" not in tensors


def test_the_model_folder_loads_in_transformers(model_folder: Path, tmp_path: Path) -> None:
    policy = Policy(model_folder)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01)
    policy.write_model(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_a_trained_model_has_the_bases_precision_and_all_its_chat_templates(model_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    whole = load_file(base / "model.safetensors")
    kept = {name: t if name.endswith("norm.weight") else t.bfloat16() for name, t in whole.items()}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    (base / "additional_chat_templates" / "code.py").write_text("of nobody")
    policy = Policy(base)
    policy.write_model(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: t.dtype for name, t in written.items()} == {name: t.dtype for name, t in kept.items()}
    assert {t.dtype for t in written.values()} == {torch.float32, torch.bfloat16}
    assert all(torch.equal(written[name], kept[name]) for name in kept)
    assert [f.name for f in (tmp_path / "out" / "additional_chat_templates").iterdir()] == ["rag.jinja"]


@pytest.mark.parametrize("name", RENAMED)
def test_tensors_are_written_by_the_names_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    save_model(name, tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    policy = Policy(tmp_path / "base", hyperparameters(engine="vllm"))
    assert base.keys() != policy.model.state_dict().keys(), "else this shows nothing"
    (tmp_path / "published").mkdir()
    policy.write_weights(tmp_path / "published")
    policy.write_model(tmp_path / "trained")
    for folder in ("published", "trained"):
        written = load_file(tmp_path / folder / "model.safetensors")
        assert written.keys() == base.keys()
        assert all(torch.equal(written[tensor], base[tensor]) for tensor in base)


def test_the_transformers_engine_gets_the_names_within_the_model(tmp_path: Path) -> None:
    policy = Policy(save_model("mixtral", tmp_path), hyperparameters(engine="transformers"))
    (tmp_path / "published").mkdir()
    policy.write_weights(tmp_path / "published")
    assert load_file(tmp_path / "published" / "model.safetensors").keys() == policy.model.state_dict().keys()
