"""vLLM's options of a job: those that would break what training relies on are refused by name, and every other unknown
one."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace_core.config.engine_options import ALLOWED, REFUSED
from headrace_core.config.generation_settings import VLLM_ONLY
from headrace_core.config.hyperparameters import Hyperparameters


def test_options_that_change_only_speed_are_taken() -> None:
    options: dict[str, Any] = {
        "attention_backend": "FLASHINFER",
        "enable_expert_parallel": True,
        "cudagraph_capture_sizes": [1, 2, 4],
        "watermark": 0.02,
    }
    assert Hyperparameters(engine_options=options).engine_options == options
    assert Hyperparameters(engine_options={"watermark": 0}).engine_options == {"watermark": 0}
    assert Hyperparameters().engine_options == {}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("logprobs_mode", "raw_logprobs", "the log-probabilities of the distribution that a token was sampled from"),
        ("enable_prefix_caching", False, "share their prompt's cache"),
        ("async_scheduling", True, "version label is exact only as vLLM schedules by default"),
        ("seed", 3, "no two sample the same completions"),
        ("dtype", "float16", "the learner computes the same tokens again"),
        ("distributed_executor_backend", "ray", "the service decides which devices and processes"),
        ("logits_processors", ["evil:Code"], "it names code"),
        ("trust_remote_code", True, "it names code"),
        ("cpu_offload_gb", 8, "weight updates write"),
        ("max_model_len", 4096, "the job has a setting for it: max_context"),
        ("kv_cache_memory_bytes", 1, "the job has a setting for it: kv_cache_gib"),
        ("speculative_config", {"method": "ngram"}, "tokens that were guessed ahead are wrong"),
        ("atention_backend", "FLASHINFER", "none of those that are known to change only speed: .*attention_backend"),
    ],
)
def test_what_would_break_a_promise_is_refused_with_the_reason(name: str, value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=rf"engine_options\.{name}: .*{reason}"):
        Hyperparameters(engine_options={name: value})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("attention_backend", 3, "text"),
        ("block_size", True, "an integer"),
        ("block_size", 16.0, "an integer"),
        ("enable_chunked_prefill", 1, "true or false"),
        ("watermark", "0.1", "a number"),
        ("watermark", False, "a number"),
        ("cudagraph_capture_sizes", 4, "a list of integers above 0"),
        ("cudagraph_capture_sizes", [1, "2"], "a list of integers above 0"),
        ("cudagraph_capture_sizes", [0], "a list of integers above 0"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, kind: str) -> None:
    with pytest.raises(ValidationError, match=rf"engine_options\.{name}: .* is not {kind}"):
        Hyperparameters(engine_options={name: value})


def test_every_option_that_is_named_is_one_of_the_pinned_vllm() -> None:
    """Read from its source, because its import takes seconds."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in ("EngineArgs", "AsyncEngineArgs")]
    fields = {
        n.target.id for c in classes for n in c.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assert len(classes) == 2
    assert not (ALLOWED.keys() | REFUSED.keys()) - fields
    assert not ALLOWED.keys() & REFUSED.keys()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization"),
        ({"quantization": "awq"}, "quantization"),
        ({"max_num_batched_tokens": 127}, "hold a token of each of max_running = 128 completions: set at least 128"),
        ({"engine": "transformers", "tensor_parallel_size": 2}, "tensor_parallel_size is a setting of the engine vllm"),
        ({"engine": "transformers", "engine_options": {"block_size": 16}}, "engine_options is a setting of the engine"),
        ({"engine_options": ["block_size"]}, "dictionary"),
    ],
)
def test_settings_of_the_engine_are_checked_alone_and_together(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Hyperparameters.model_validate(settings)


def test_settings_that_only_vllm_has_may_be_given_to_another_engine_as_they_are_by_default() -> None:
    """A job that is shown with all of its settings can be submitted again."""
    shown = Hyperparameters(engine="transformers").model_dump()
    assert shown.keys() > set(VLLM_ONLY)
    assert Hyperparameters.model_validate(shown).engine == "transformers"
    enough = Hyperparameters(max_num_batched_tokens=128)
    assert (enough.max_num_batched_tokens, enough.kv_cache_gib) == (128, None)
