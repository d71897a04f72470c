"""Bytes on each device of one rollout worker, part by part, and the tokens that its KV cache holds.

Under tensor parallelism each device holds its part of the weights and of the cache. All of the next version is staged
on each, where it fits beside the rest; where it does not, vLLM on a GPU stages it on the host
(`engines/vllm/weight_updates.py` of `rollout/headrace_rollout`).
"""

from __future__ import annotations

from ..config.generation_settings import DEFAULT_CACHE_GIB, ENGINE_SHARE, GPU_BATCHED_TOKENS
from ..config.hyperparameters import Hyperparameters
from .devices import RUNTIME, DeviceLoad, Devices
from .learner_memory import FLOAT32, Parts
from .model_shape import ModelShape, numbers

GIB = 2**30
_BFLOAT16 = 2
_STAGED_COPIES = {("vllm", True): 1, ("vllm", False): 2, ("transformers", True): 1, ("transformers", False): 1}
"""Copies beside the running weights, by (engine, on a GPU): on a CPU vLLM packs the staged weights into a third."""
_LOGIT_COPIES = 3
"""Of the logits of a decode step, float32: as computed, as log-probabilities, as sorted or sampled from."""
STAGING = "weight staging"
CACHE = "KV cache"


def number_bytes(gpu: bool) -> int:
    """Of a weight or a cached value in an engine: bfloat16 on a GPU, float32 on a CPU."""
    return _BFLOAT16 if gpu else FLOAT32


def token_bytes(model: ModelShape, settings: Hyperparameters, gpu: bool) -> int:
    """Of one token in the KV cache of one device: a key and a value for each head of each layer.

    Where devices outnumber the heads, several hold the same one.
    """
    heads = -(-model.kv_heads // settings.tensor_parallel_size)
    return 2 * model.depth * heads * model.head_dim * number_bytes(gpu)


def cache_tokens(model: ModelShape, settings: Hyperparameters, cache: int, gpu: bool) -> int:
    """Tokens that a rollout worker's cache of `cache` bytes a device holds."""
    return cache // token_bytes(model, settings, gpu)


def rollout_parts(model: ModelShape, settings: Hyperparameters, devices: Devices, load: DeviceLoad) -> Parts:
    """Of one rollout worker on one device, while it prepares a new version there."""
    size, split = number_bytes(devices.gpu), settings.tensor_parallel_size
    pass_tokens = settings.max_num_batched_tokens or max(GPU_BATCHED_TOKENS, settings.max_running)
    parts = {
        "weights": _weights(model, settings, size) // split,
        "activations": pass_tokens * size * (3 * _widest(model) // split + 4 * model.hidden),
        "logits": settings.max_running * model.vocabulary * FLOAT32 * _LOGIT_COPIES,
    }
    return parts | {
        CACHE: _cache(settings, devices, load, sum(parts.values())),
        STAGING: _staging(model, settings, devices.gpu),
    }


def staged_on_host(settings: Hyperparameters, gpu: bool) -> bool:
    """Whether a version that does not fit on the device is staged on the host: mapped files, no copy of them."""
    return gpu and settings.engine == "vllm" and settings.lora_rank is None


def _cache(settings: Hyperparameters, devices: Devices, load: DeviceLoad, others: int) -> int:
    """Of one device: as set, or what an engine leaves of its share of a GPU besides `others`."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * GIB)
    if settings.engine != "vllm" or not devices.gpu:
        return int(DEFAULT_CACHE_GIB * GIB)
    share = settings.gpu_memory_utilization or ENGINE_SHARE * load.part
    return max(0, int(share * devices.memory) - others - RUNTIME["rollout", True])


def _weights(model: ModelShape, settings: Hyperparameters, size: int) -> int:
    """Of the whole running model. fp8 holds the layers' matrices in a byte for each number."""
    if settings.quantization is None:
        return numbers(model.parameters()) * size
    return numbers(model.in_layers()) + model.outside_layers() * size


def _staging(model: ModelShape, settings: Hyperparameters, gpu: bool) -> int:
    if settings.lora_rank is not None and gpu and settings.engine == "vllm":
        return 3 * numbers(model.adapters(settings.lora_rank)) * FLOAT32  # in vLLM's own slot; the base stays
    whole = numbers(model.parameters()) * number_bytes(gpu)
    if not gpu:  # each process of an engine loads and packs its own part
        whole = -(-whole // settings.tensor_parallel_size)
    return whole * _STAGED_COPIES[settings.engine, gpu]


def _widest(model: ModelShape) -> int:
    """Numbers of a token within an MLP: of all the experts that it is sent to."""
    return max(layer.intermediate * max(1, layer.experts_per_token) for layer, _ in model.layers)
