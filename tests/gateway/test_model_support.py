"""Models that cannot be trained are refused at submission, with the reason, and those that can are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headrace_core.errors import InvalidRequest
from headrace_gateway.models.model_support import causal_models, check_splittable, check_trainable
from headrace_lab.paths import ADDER

from .conftest import Served, body
from .test_envelope import error_of, http

__all__ = ["http"]  # a fixture

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def model(folder: Path, config: dict[str, Any], weights: str = "model.safetensors") -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).touch()
    return folder


def nested(**text: Any) -> dict[str, Any]:
    """A configuration of several models, one of them for text."""
    architectures = ["Gemma4ForConditionalGeneration"]
    return {
        "model_type": "gemma4",
        "architectures": architectures,
        "text_config": {"model_type": "gemma4_text", **text},
    }


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"weights are quantized \(gptq\)"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "weights are quantized"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "baichuan", "auto_map": {"AutoConfig": "c.C"}}, "type 'baichuan' .*auto_map, which is not run"),
        ({"model_type": "nobody_knows"}, "no causal language model of type 'nobody_knows'"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "saved as BertForMaskedLM"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}, "head that was never trained"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": False}, "it is an encoder"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (nested(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (LLAMA | {"logit_scale": 0.0625}, "logit_scale = 0.0625"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    for engine in ("vllm", "transformers"):
        with pytest.raises(InvalidRequest, match=reason) as refusal:
            check_trainable(model(tmp_path, config), engine, 128)
        assert (refusal.value.param, refusal.value.code) == ("model", "model_not_supported")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "falcon", "alibi": True}, "ALiBi"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"model_type": "mistral", "sliding_window": 64}, r"64 tokens back \(sliding_window\), and max_context is 128"),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, "64 tokens back"),
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, "attention_chunk_size"),
        ({"model_type": "olmo3", "sliding_window": 64, "layer_types": ["sliding_attention"]}, "64 tokens back"),
        ({"model_type": "qwen3_next"}, "no attention"),
        ({"model_type": "llama", "layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        (nested(sliding_window=64), "64 tokens back"),
    ],
)
def test_what_the_engine_transformers_cannot_sample_is_left_to_vllm(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    folder = model(tmp_path, config)
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        check_trainable(folder, "transformers", 128)
    assert 'take the engine "vllm"' in refusal.value.message
    check_trainable(folder, "vllm", 128)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mistral", "sliding_window": 128},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False},
        {"model_type": "qwen3", "sliding_window": 64, "layer_types": ["full_attention"] * 2},
        LLAMA | {"logits_scaling": 1.0, "final_logit_softcapping": None, "quantization_config": None},
        {"model_type": "gemma3_text", "final_logit_softcapping": 30.0, "attn_logit_softcapping": None},
        {"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "m.M"}, "architectures": ["Phi3ForCausalLM"]},
        {"model_type": "llama", "architectures": ["LLaMAForCausalLM"]},
        {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "text_config": {}},
        {},
    ],
)
def test_what_can_work_is_let_through(tmp_path: Path, config: dict[str, Any]) -> None:
    check_trainable(model(tmp_path, config), "transformers", 128)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config, GPT2Config, MistralConfig])
def test_what_transformers_saves_of_common_models_is_let_through(tmp_path: Path, kind: type) -> None:
    config = kind()
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    check_trainable(tmp_path, "transformers", 128)
    assert AutoConfig.from_pretrained(tmp_path).model_type == config.model_type


def test_the_known_types_are_those_of_transformers_without_its_import() -> None:
    expected = {k: v if isinstance(v, tuple) else (v,) for k, v in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    assert causal_models() == expected
    program = (
        "import sys; from headrace_gateway.models.model_support import causal_models; assert causal_models()\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert done.stdout.strip() == b"[]"


def test_weights_in_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no \*\.safetensors"):
        check_trainable(model(tmp_path, LLAMA, "pytorch_model.bin"), "vllm", 128)


@pytest.mark.parametrize("shard", ["model.safetensors", "model-00002-of-00002.safetensors"])
def test_weights_of_another_vocabulary_than_by_their_config_are_refused(tmp_path: Path, shard: str) -> None:
    config = json.loads((ADDER / "model" / "config.json").read_text())
    model(tmp_path, config, "model-00001-of-00002.safetensors")
    (tmp_path / shard).write_bytes((ADDER / "model" / "model.safetensors").read_bytes())
    check_trainable(tmp_path, "transformers", 128)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 347}))
    with pytest.raises(
        InvalidRequest, match=r"embeddings of 310 tokens .*, and its config\.json names 347 \(vocab_size"
    ):
        check_trainable(tmp_path, "transformers", 128)


async def test_a_job_on_such_a_model_is_refused_and_nothing_is_stored(
    http: httpx.AsyncClient, served: Served, training_file: str, tmp_path: Path
) -> None:
    for file in (ADDER / "model").iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((ADDER / "model" / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    answer = await http.post("/v1/fine_tuning/jobs", json=body(training_file, model=str(tmp_path)))
    error = error_of(answer, 400)
    assert (error["code"], error["param"]) == ("model_not_supported", "model")
    assert await served.jobs.ids() == []


@pytest.mark.parametrize(
    ("heads", "devices", "says"),
    [
        (
            {"num_attention_heads": 14, "num_key_value_heads": 2},
            4,
            "has 14 heads \\(num_attention_heads\\), which .* 4",
        ),
        ({"num_attention_heads": 24, "num_key_value_heads": 8}, 3, "has 8 heads \\(num_key_value_heads\\)"),
        ({"num_attention_heads": 28, "num_key_value_heads": 4}, 4, None),
        ({"num_attention_heads": 32, "num_key_value_heads": 4}, 8, None),  # two devices hold the same head
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, 1, None),
        ({}, 8, None),  # an older family has other names
    ],
)
def test_an_engine_is_split_where_the_heads_divide(
    tmp_path: Path, heads: dict[str, int], devices: int, says: str | None
) -> None:
    for config in (LLAMA | heads, nested(**heads)):
        folder = model(tmp_path, config)
        if says is None:
            check_splittable(folder, devices, "x")
        else:
            with pytest.raises(InvalidRequest, match=says) as refused:
                check_splittable(folder, devices, "x")
            assert refused.value.param == "x"
