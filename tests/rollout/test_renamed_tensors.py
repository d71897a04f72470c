"""Adapters of models that the library keeps by other names than their files: from the learner into each engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_learner.models import lora
from headrace_learner.models.policy import Policy
from headrace_rollout.engines.engine import EngineConfig
from headrace_rollout.engines.transformers.policy_model import PolicyModel
from headrace_rollout.engines.weight_files import BaseModel

RANK = 2
SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "sliding_window": 64},
}
SEEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
RENAMED: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
    "gemma3": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(
            text_config={**SMALL, "model_type": "gemma3_text"},
            vision_config={**SEEN, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        ),
    ),
}


def named(tensor: str) -> Callable[[str], str]:
    """A message of a comparison, with the name of what was compared."""
    return lambda said: f"{tensor}: {said}"


def trained(folder: Path, name: str, engine: str) -> Policy:
    """An adapted policy whose adapters have moved, of a model that is saved in `folder`."""
    torch.manual_seed(0)
    kind, config = RENAMED[name]
    kind(config).save_pretrained(folder)
    policy = Policy(folder, Hyperparameters.model_validate({"engine": engine, "lora_rank": RANK}))
    move(policy, seed=1)
    return policy


def move(policy: Policy, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.4, generator=chance)


def published(policy: Policy, to: Path) -> Path:
    to.mkdir()
    policy.write_weights(to)
    return to


@pytest.mark.parametrize("name", RENAMED)
def test_an_adapter_for_vllm_is_merged_into_the_files_of_the_base(name: str, tmp_path: Path) -> None:
    policy = trained(tmp_path / "base", name, "vllm")
    policy.write_model(tmp_path / "whole")
    found = dict(BaseModel(tmp_path / "base").read(published(policy, tmp_path / "adapter")))
    base, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "whole"))
    assert found.keys() == base.keys() == expected.keys()
    assert sum(not torch.equal(base[tensor], expected[tensor]) for tensor in base) >= 8, "attention, of two layers"
    for tensor, value in expected.items():
        torch.testing.assert_close(found[tensor], value, msg=named(tensor))


@pytest.mark.parametrize("name", RENAMED)
def test_the_transformers_engine_merges_every_version_into_the_base_within_the_model(name: str, tmp_path: Path) -> None:
    policy = trained(tmp_path / "base", name, "transformers")
    config = EngineConfig(
        model=tmp_path / "base", max_model_len=32, max_running=2, kv_cache_gib=0.01, lora_rank=RANK, dtype="float32"
    )
    with torch.inference_mode():
        engine = PolicyModel(config)
        for version in (1, 2):
            move(policy, seed=version)
            staged = engine.stage(published(policy, tmp_path / f"v{version}"))
            engine.swap(staged)
            expected = lora.merged(policy.model)
            within = engine.model.state_dict()
            assert expected.keys() <= within.keys()
            for tensor, value in expected.items():
                torch.testing.assert_close(within[tensor], value, msg=named(tensor))


def test_a_layer_that_is_a_part_of_a_tensor_in_the_files_is_refused_when_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = RENAMED["mixtral"]
    kind(config).save_pretrained(tmp_path)

    def in_halves(_: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"{name}.{half}": part for name, t in state.items() for half, part in enumerate(t.chunk(2))}

    monkeypatch.setattr(lora, "revert_weight_conversion", in_halves)
    with pytest.raises(InvalidRequest, match=r"cannot be adapted for vLLM.*as several; take the engine"):
        Policy(tmp_path, Hyperparameters.model_validate({"engine": "vllm", "lora_rank": RANK}))
    Policy(tmp_path, Hyperparameters.model_validate({"engine": "transformers", "lora_rank": RANK}))
