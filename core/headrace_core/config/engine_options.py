"""Which of vLLM's own options a job may set under `engine_options`, and why not the others (decision 0052).

vLLM has some 200 options. A job may set those of `ALLOWED`, which change only how fast an engine is and how it uses
its devices; `kv_cache_dtype` alone changes what it computes, too, and max_mismatch bounds by how much. All others are
refused: some by name with a reason (`REFUSED`), because they would break a promise that the rest of the service builds
on (which log-probabilities a token has, which weights sampled it, whose code runs), and the rest because nobody has
checked them yet. So an option that a later vLLM adds is never passed on unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALLOWED: Mapping[str, tuple[type, ...]] = {
    # the device's kernels
    "attention_backend": (str,),
    "moe_backend": (str,),
    "linear_backend": (str,),
    "disable_cascade_attn": (bool,),
    "enable_flashinfer_autotune": (bool,),
    "kv_cache_dtype": (str,),
    "block_size": (int,),
    # compilation and CUDA graphs
    "optimization_level": (int,),
    "performance_mode": (str,),
    "cudagraph_capture_sizes": (list,),
    "max_cudagraph_capture_size": (int,),
    # the scheduler
    "enable_chunked_prefill": (bool,),
    "long_prefill_token_threshold": (int,),
    "scheduler_reserve_full_isl": (bool,),
    "watermark": (int, float),
    # several devices
    "enable_expert_parallel": (bool,),
    "all2all_backend": (str,),
    "disable_custom_all_reduce": (bool,),
    "distributed_timeout_seconds": (int,),
    "numa_bind": (bool,),
}
"""Option to the JSON types that its value may have."""

_KINDS = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list of integers above 0",
}

_OWN_SETTING = "the job has a setting for it: {}"
_CODE = "it names code or a file that the engine would load, and a job brings neither"
_WEIGHTS = "weight updates write the model's tensors where it would move or replace them"
_SPECULATION = "log-probabilities of tokens that were guessed ahead are wrong in vLLM, and a seed repeats nothing"
_PLACE = "the service decides which devices and processes an engine has"

REFUSED: Mapping[str, str] = {
    "logprobs_mode": "training needs the log-probabilities of the distribution that a token was sampled from",
    "max_logprobs": "a scoring needs the whole distribution",
    "return_sampling_mask": "training samples from the whole distribution",
    "enable_prefix_caching": "completions of a group share their prompt's cache, and each cache belongs to one version",
    "prefix_caching_hash_algo": "a prefix cache must never be confused with that of an older version",
    "async_scheduling": "a token's version label is exact only as vLLM schedules by default",
    "stream_interval": "a token is reported as soon as it is sampled, so that its version is known",
    "seed": "each rollout worker derives its own from the job's seed, so that no two sample the same completions",
    "dtype": "the learner computes the same tokens again, and must know the precision",
    "use_fp64_gumbel": "sampling is checked as vLLM does it by default",
    "generation_config": "only the job's own sampling settings apply",
    "override_generation_config": "only the job's own sampling settings apply",
    "logits_processors": _CODE,
    "worker_cls": _CODE,
    "worker_extension_cls": "the service applies weight updates through it",
    "scheduler_cls": _CODE,
    "model_impl": _CODE,
    "model_class_overrides": _CODE,
    "hf_overrides": "engine and learner must compute the same model",
    "hf_config_path": _CODE,
    "trust_remote_code": _CODE,
    "tokenizer": _CODE,
    "reasoning_parser_plugin": _CODE,
    "io_processor_plugin": _CODE,
    "model": "it is the job's model",
    "model_weights": "it is the job's model",
    "load_format": "it is the job's model",
    "download_dir": "an engine downloads nothing",
    "skip_tokenizer_init": "the engine takes token ids",
    "max_model_len": _OWN_SETTING.format("max_context"),
    "max_num_seqs": _OWN_SETTING.format("max_running"),
    "kv_cache_memory_bytes": _OWN_SETTING.format("kv_cache_gib"),
    "num_gpu_blocks_override": _OWN_SETTING.format("kv_cache_gib"),
    "gpu_memory_utilization": _OWN_SETTING.format("gpu_memory_utilization"),
    "max_num_batched_tokens": _OWN_SETTING.format("max_num_batched_tokens"),
    "tensor_parallel_size": _OWN_SETTING.format("tensor_parallel_size"),
    "enforce_eager": _OWN_SETTING.format("enforce_eager"),
    "quantization": _OWN_SETTING.format("quantization"),
    "speculative_config": _SPECULATION,
    "spec_method": _SPECULATION,
    "spec_model": _SPECULATION,
    "spec_tokens": _SPECULATION,
    "enable_lora": _OWN_SETTING.format("lora_rank"),
    "max_lora_rank": _OWN_SETTING.format("lora_rank"),
    "distributed_executor_backend": _PLACE,
    "pipeline_parallel_size": _PLACE + "; tensor_parallel_size splits a model",
    "data_parallel_size": _PLACE + "; rollout_workers adds engines",
    "device_ids": _PLACE,
    "nnodes": _PLACE,
    "master_addr": _PLACE,
    "cpu_offload_gb": _WEIGHTS,
    "offload_backend": _WEIGHTS,
    "enable_eplb": _WEIGHTS,
    "enable_sleep_mode": _WEIGHTS,
    "weight_transfer_config": "the service applies weight updates by a way of its own",
    "kv_transfer_config": "a cache from elsewhere has no known version",
    "kv_offloading_size": "a cache that is brought back may be older than the weights",
    "compilation_config": "it can name code and files; optimization_level and cudagraph_capture_sizes are allowed",
    "watermark_config": "it changes the distribution that is sampled from",
}
"""Options that break a promise of the service, with the reason."""


def refusal(name: str) -> str | None:
    """Why a job may not set vLLM's option `name`; None if it may."""
    if name in ALLOWED:
        return None
    return REFUSED.get(name, f"it is none of those that are known to change only speed: {', '.join(sorted(ALLOWED))}")


def check_engine_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that a job may not set, or whose value has another type."""
    for name, value in options.items():
        if (reason := refusal(name)) is not None:
            raise ValueError(f"engine_options.{name}: {reason}")
        kinds = ALLOWED[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"engine_options.{name}: {value!r} is not {_KINDS[kinds[-1]]}")
        if isinstance(value, list) and not all(type(each) is int and each > 0 for each in value):
            raise ValueError(f"engine_options.{name}: {value!r} is not {_KINDS[list]}")
