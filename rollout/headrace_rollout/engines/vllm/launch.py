"""How vLLM is configured and started: arguments, environment, processes.

Everything that depends on the device is here, in `_device_arguments` and `_environment` (and, for weights, in
`weight_updates`); the engine itself does not depend on it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from headrace_core.config.generation_settings import DEFAULT_CACHE_GIB, ENGINE_SHARE, GPU_BATCHED_TOKENS

from ..engine import EngineConfig
from ..parameter_names import model_without_weights, own_config
from .orphan_guard import OrphanGuard, is_shared_segment

WORKER_EXTENSION = "headrace_rollout.engines.vllm.worker_extension.WeightExtension"
"""vLLM's processes import the class by this name."""

CPU_BLOCK_TOKENS = 32
"""Tokens of a prefix-cache block on a CPU. vLLM's default there, 128, is longer than most prompts, so the completions
of a group would never share their prompt's cache; the CPU kernels want a multiple of 32."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts as `max_lora_rank`."""

END_LIMIT = 10.0
"""Seconds within which a killed process must have ended."""


def engine_arguments(config: EngineConfig) -> dict[str, Any]:
    """Keyword arguments of vLLM's `AsyncEngineArgs` for `config`."""
    return {
        "model": str(config.model),
        # Token ids in, token ids out: vLLM needs the tokenizer only to hold completions to a JSON schema.
        "skip_tokenizer_init": not config.json_schemas,
        # The same library for both engines, so that both understand a schema alike; it refuses what it does not know.
        **({"structured_outputs_config": {"backend": "guidance"}} if config.json_schemas else {}),
        "max_model_len": context_length(config),
        "load_format": "safetensors",
        "max_num_seqs": config.max_running,
        "seed": config.seed,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        # No limit, because scoring at a temperature other than 1 needs the whole vocabulary.
        "max_logprobs": -1,
        # Only a request's own parameters apply, not the defaults in the model's generation_config.json.
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "enable_log_requests": False,
        "tensor_parallel_size": config.tensor_parallel_size,
        # Named, because inside a Ray placement group vLLM would run its processes as Ray actors, without telling.
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else "uni",
        **_adapter_arguments(config),
        **_device_arguments(config),
        **config.engine_options,
    }


def on_cpu() -> bool:
    """Whether the installed vLLM computes on CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def in_slot(config: EngineConfig) -> bool:
    """Whether adapters run in vLLM's LoRA layers, instead of being merged into the weights."""
    if config.lora_rank is None or config.adapters == "merged":
        return False
    return config.adapters == "slot" or not on_cpu()


def _adapter_arguments(config: EngineConfig) -> dict[str, Any]:
    if config.lora_rank is None or not in_slot(config):
        return {}
    ranks = [rank for rank in VLLM_RANKS if rank >= config.lora_rank]
    if not ranks:
        raise ValueError(f"vLLM's LoRA layers hold ranks up to {VLLM_RANKS[-1]}, not {config.lora_rank}")
    return {
        "enable_lora": True,
        "max_lora_rank": ranks[0],
        "max_loras": 1,
        # Without the head: vLLM's LoRA layer of it confuses the rows of a scored prompt with sampled ones, and fails if
        # other requests run (vllm issues 16668, 51594). All linear layers may be named once those are closed.
        "lora_target_modules": _linear_layers(config.model),
    }


def _linear_layers(folder: Path) -> list[str]:
    """The last parts of the names of all linear layers but the head: those that the learner adapts."""
    model = model_without_weights(folder)
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return sorted({name.rpartition(".")[2] for name in linear})


def _device_arguments(config: EngineConfig) -> dict[str, Any]:
    return _cpu_arguments(config) if on_cpu() else _gpu_arguments(config)


def _gpu_arguments(config: EngineConfig) -> dict[str, Any]:
    part = min(1.0, config.gpus / config.tensor_parallel_size) if config.gpus else 1.0
    return {
        "dtype": config.dtype,
        # Passed with a cache of a given size too: vLLM refuses to start where less of the GPU than this is free.
        "gpu_memory_utilization": config.gpu_memory_utilization or ENGINE_SHARE * part,
        "kv_cache_memory_bytes": None if config.kv_cache_gib is None else int(config.kv_cache_gib * 2**30),
        "max_num_batched_tokens": config.max_num_batched_tokens or max(GPU_BATCHED_TOKENS, config.max_running),
        "enforce_eager": config.enforce_eager,
        "quantization": config.quantization,
    }


def _cpu_arguments(config: EngineConfig) -> dict[str, Any]:
    if config.quantization is not None:
        raise ValueError(f"quantization {config.quantization} is computed by GPUs, and this vLLM runs on CPUs")
    gib = DEFAULT_CACHE_GIB if config.kv_cache_gib is None else config.kv_cache_gib
    return {
        "dtype": "float32" if config.dtype == "auto" else config.dtype,
        "kv_cache_memory_bytes": int(gib * 2**30),
        "max_num_batched_tokens": config.max_num_batched_tokens,
        # Compilation makes a start 26 s longer for 5 % of speed, and would fix the handlers that an update swaps.
        "enforce_eager": True,
        "block_size": CPU_BLOCK_TOKENS,
    }


def context_length(config: EngineConfig) -> int:
    """vLLM's context length: one token more than the engine's if the model allows it, because scoring must sample
    one."""
    longest = getattr(text_settings(config.model), "max_position_embeddings", None)
    return config.max_model_len + 1 if longest is None or config.max_model_len < longest else config.max_model_len


def text_settings(model: Path) -> Any:
    """The configuration of the text model, which in multimodal models is a part of config.json. Raises
    FileNotFoundError without a config.json."""
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} is no model folder: it has no config.json")
    return own_config(model).get_text_config()


def start_engine(config: EngineConfig, guard: OrphanGuard) -> Any:
    """A started `AsyncLLM`, whose processes `guard` watches. Blocks until the model is loaded, so call it in a
    thread."""
    # The resource tracker must not be one of this engine's processes: this process has one for everything it starts.
    resource_tracker.ensure_running()
    with _environment(config, guard):
        # Imported here because vLLM reads the environment when it is imported, and takes seconds.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(config)))


def engine_processes() -> set[psutil.Process]:
    """vLLM's processes under this one: engine cores, which are its children, and their workers."""
    found: set[psutil.Process] = set()
    for child in multiprocessing.active_children():
        # A process may end between two of these lines.
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name.startswith("EngineCore"):
                core = psutil.Process(child.pid)
                found |= {core, *core.children(recursive=True)}
    return found


def end_processes(processes: set[psutil.Process], grace: float) -> None:
    """Wait up to `grace` seconds for `processes` to end by themselves, then kill those that remain."""
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_LIMIT)


def shared_segments(processes: set[psutil.Process]) -> set[Path]:
    """vLLM's shared memory segments that `processes` have mapped: its message queues are 160 MB each."""
    found: set[Path] = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            names = (line.split(" ")[-1] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines())
            found |= {Path(name) for name in names if is_shared_segment(name)}
    return found


@contextlib.contextmanager
def _environment(config: EngineConfig, guard: OrphanGuard) -> Iterator[None]:
    """Context in which the environment is that of vLLM's processes; it is restored afterwards."""
    variables = {
        **guard.environment,
        "OMP_NUM_THREADS": str(max(1, config.threads // config.tensor_parallel_size)),
        # vLLM's own binding would give all engines of a machine the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # All processes of an engine are on one machine, so their sockets use loopback, whatever its name resolves to.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if config.distributions:
        # The second model runner computes log-probabilities in a kernel that `worker_extension.measure` cannot replace.
        variables["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
