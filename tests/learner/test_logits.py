"""Log-probabilities are the model's own, whatever stands between its head and its logits; else it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headrace_core.errors import InvalidRequest
from headrace_learner.algorithms.batch import build_step_batch
from headrace_learner.models import logits
from headrace_learner.models.policy import Policy

from .cases import VOCAB, hyperparameters, random_group

SMALL = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64},
}
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}


def save(folder: Path, kind: str, **settings: Any) -> Path:
    """A tiny model of the library's type `kind`, with weights large enough for a wrong formula to show."""
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    config.update({name: 1 for name in special if hasattr(config, name)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of the library's own kernels and token ids
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *[("gemma2", {}), ("gemma4_text", {"final_logit_softcapping": 3.0}), ("gemma3_text", {})],
        *[("xlstm", {"embedding_dim": 32, "num_blocks": 2, "num_heads": 2}), ("granite", {}), ("qwen3", {})],
    ],
)
def test_log_probabilities_are_those_of_the_models_own_logits(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    policy = Policy(save(tmp_path, kind, **settings))
    (minibatch,) = build_step_batch([random_group(1)], 0, hyperparameters(token_budget=4096)).minibatches
    batch = minibatch.micro_batches[0]
    with torch.no_grad():
        found = policy.logprobs(batch, 0.8)
        own = torch.log_softmax(policy.model(input_ids=batch.inputs_BT, use_cache=False).logits / 0.8, -1)
    expected = own[batch.rows_N, batch.positions_N].gather(1, batch.targets_N[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("cohere", {}, "logit_scale = 0.0625"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ("falcon_h1", FALCON | {"lm_head_multiplier": 0.04}, "lm_head_multiplier = 0.04"),
        ("modernbert-decoder", {}, "ModernBertDecoderPredictionHead"),
    ],
)
def test_a_model_whose_logits_are_made_otherwise_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=r"off by up to [0-9.]+ nats") as refused:
        Policy(save(tmp_path, kind, **settings))
    assert says in str(refused.value)


def test_a_soft_cap_is_read_where_a_model_of_several_keeps_it() -> None:
    config = AutoConfig.for_model("gemma4", text_config={"final_logit_softcapping": 30.0})
    assert logits.soft_cap(config) == 30.0
    assert logits.soft_cap(AutoConfig.for_model("qwen3")) is None
