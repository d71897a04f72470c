"""What vLLM is told of a model, by its folder alone; the engine itself is in test_engines and test_vllm_life."""

from __future__ import annotations

import ast
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headrace_rollout.engines.engine import EngineConfig
from headrace_rollout.engines.vllm import launch
from headrace_rollout.engines.vllm.orphan_guard import OrphanGuard


def folder(path: Path, config: dict[str, object]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_model_of_text_and_pictures_has_the_vocabulary_of_its_text_model(tmp_path: Path) -> None:
    """As published ones are: the text model's settings lie within, and those at their defaults are not written."""
    text = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    nested = folder(tmp_path, {"model_type": "gemma3", "text_config": text})
    assert launch.text_settings(nested).vocab_size == 262_208
    lengths = [launch.context_length(EngineConfig(nested, max_model_len=longest)) for longest in (511, 512)]
    assert lengths == [512, 512], "one more than asked for, which a scoring samples, but no more than the model knows"


def test_positions_that_config_json_leaves_at_their_default_bound_the_context(tmp_path: Path) -> None:
    plain = folder(tmp_path, {"model_type": "gpt2"})
    assert launch.context_length(EngineConfig(plain, max_model_len=1024)) == 1024


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        launch.text_settings(tmp_path)


def arguments(folder: Path, monkeypatch: pytest.MonkeyPatch, cpu: bool = False, **settings: Any) -> dict[str, Any]:
    """What vLLM's `AsyncEngineArgs` is given, on a GPU by default."""
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    monkeypatch.setattr(launch, "on_cpu", lambda: cpu)
    return launch.engine_arguments(EngineConfig(folder, **settings))


def test_a_gpu_is_filled_by_share_and_a_cpu_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = arguments(tmp_path, monkeypatch)
    assert (on_gpu["gpu_memory_utilization"], on_gpu["kv_cache_memory_bytes"]) == (0.9, None)
    on_cpu = arguments(tmp_path, monkeypatch, cpu=True)
    assert on_cpu["kv_cache_memory_bytes"] == 2**30
    assert "gpu_memory_utilization" not in on_cpu
    for cpu in (False, True):
        assert arguments(tmp_path, monkeypatch, cpu, kv_cache_gib=0.5)["kv_cache_memory_bytes"] == 2**29


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"gpus": 0.5}, 0.45),
        ({"gpus": 0.5, "kv_cache_gib": 1.0}, 0.45),  # vLLM wants so much free, however large the cache
        ({"gpus": 4.0, "tensor_parallel_size": 4}, 0.9),
        ({"gpus": 0.0}, 0.9),  # not told: vLLM outside of the service
        ({"gpus": 0.5, "gpu_memory_utilization": 0.3}, 0.3),
    ],
)
def test_an_engine_takes_its_part_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], share: float
) -> None:
    assert arguments(tmp_path, monkeypatch, **settings)["gpu_memory_utilization"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("cpu", "settings", "tokens"),
    [
        (False, {}, 8192),
        (False, {"max_running": 10_000}, 10_000),  # vLLM wants room for a token of each completion
        (False, {"max_num_batched_tokens": 2048}, 2048),
        (True, {}, None),
        (True, {"max_num_batched_tokens": 512}, 512),
    ],
)
def test_tokens_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: bool, settings: dict[str, Any], tokens: int | None
) -> None:
    assert arguments(tmp_path, monkeypatch, cpu, **settings)["max_num_batched_tokens"] == tokens


def test_the_executor_is_named_so_that_vllm_does_not_choose_that_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu in (False, True):
        split = arguments(tmp_path, monkeypatch, cpu, tensor_parallel_size=2)
        assert (split["tensor_parallel_size"], split["distributed_executor_backend"]) == (2, "mp")
        assert arguments(tmp_path, monkeypatch, cpu)["distributed_executor_backend"] == "uni"


def test_eager_and_quantized_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = arguments(tmp_path, monkeypatch)
    assert (plain["enforce_eager"], plain["quantization"]) == (False, None)
    asked = arguments(tmp_path, monkeypatch, enforce_eager=True, quantization="fp8")
    assert (asked["enforce_eager"], asked["quantization"]) == (True, "fp8")
    assert arguments(tmp_path, monkeypatch, cpu=True)["enforce_eager"]
    with pytest.raises(ValueError, match="quantization fp8 is computed by GPUs"):
        arguments(tmp_path, monkeypatch, cpu=True, quantization="fp8")


def test_options_of_the_job_are_passed_on_and_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"block_size": 64, "attention_backend": "FLASHINFER"}
    on_cpu = arguments(tmp_path, monkeypatch, cpu=True, engine_options=options)
    assert {name: on_cpu[name] for name in options} == options
    assert arguments(tmp_path, monkeypatch, cpu=True)["block_size"] == launch.CPU_BLOCK_TOKENS


def test_what_the_contracts_rest_on_is_the_same_for_every_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"tensor_parallel_size": 2},
        {"quantization": "fp8"},
    ]
    for given in settings:
        made = arguments(tmp_path, monkeypatch, seed=7, **given)
        assert (made["logprobs_mode"], made["enable_prefix_caching"]) == ("processed_logprobs", True)
        assert (made["seed"], made["generation_config"], made["max_logprobs"]) == (7, "vllm", -1)
        assert made["worker_extension_cls"] == launch.WORKER_EXTENSION


def test_every_argument_is_one_of_the_pinned_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from its source, because its import takes seconds."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in ("EngineArgs", "AsyncEngineArgs")]
    fields = {ast.unparse(n.target) for c in classes for n in c.body if isinstance(n, ast.AnnAssign)}
    for cpu in (False, True):
        assert not arguments(tmp_path, monkeypatch, cpu, json_schemas=True).keys() - fields


def test_the_processes_of_an_engine_share_its_threads(tmp_path: Path) -> None:
    guard = OrphanGuard()
    try:
        for threads, processes, each in ((4, 1, "4"), (5, 2, "2"), (1, 2, "1")):
            config = EngineConfig(tmp_path, threads=threads, tensor_parallel_size=processes)
            with launch._environment(config, guard):
                assert os.environ["OMP_NUM_THREADS"] == each
    finally:
        guard.release()
