"""Log-probabilities in chunks, and files that load elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learner_cases import VOCAB, random_group
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from headrace_core.errors import InvalidRequest
from headrace_learner import model
from headrace_learner.advantages import grpo
from headrace_learner.batch import MicroBatch, minibatches
from headrace_learner.model import Policy


def a_batch() -> MicroBatch:
    (batch,), _ = minibatches([random_group(i) for i in range(3)], grpo, 0, 0, count=1, token_budget=4096)
    return batch.micro_batches[0]


def test_a_head_in_chunks_gives_the_same_values_and_gradients(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = Policy(model_folder), a_batch()

    def run() -> tuple[Tensor, list[Tensor]]:
        logprobs = policy.logprobs(batch, 0.8)
        return logprobs, list(torch.autograd.grad(logprobs.sum(), list(policy.model.parameters())))

    whole, whole_gradients = run()
    monkeypatch.setattr(model, "_LOGITS_AT_ONCE", 7 * VOCAB)
    assert len(whole) > 3 * 7
    chunked, chunked_gradients = run()
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    for found, expected in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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


def test_a_model_that_reshapes_its_logits_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "softcapped")
    with pytest.raises(InvalidRequest, match="final_logit_softcapping"):
        Policy(tmp_path / "softcapped")
