"""A job's settings of generation: its rollout workers, what they sample, and how their engines use their devices."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .bounds import MAX_FLOAT, WholeNumber
from .engine_options import check_engine_options
from .exact_model import ExactModel

MIN_TEMPERATURE = 0.01
"""Logits divided by less are no numbers any more, or leave the range of float32."""
MIN_CACHE_GIB = 1 / 1024
"""Less holds no completion. vLLM sizes its cache by itself where it is told a size of 0 bytes."""

DEFAULT_CACHE_GIB = 1.0
"""GiB of a KV cache whose size neither the job nor the device determines."""
ENGINE_SHARE = 0.9
"""Share of its part of a GPU's memory that vLLM plans with; the rest is for CUDA graphs and for staged weights."""
GPU_BATCHED_TOKENS = 8192
"""Tokens of one step of vLLM on a GPU. Its own default for an engine that no server or script of its own starts is
2048, which starves a GPU in the reading of prompts."""

VLLM_ONLY = (
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "max_num_batched_tokens",
    "enforce_eager",
    "quantization",
    "engine_options",
)
"""Settings that only the engine `vllm` has."""


class GenerationSettings(ExactModel):
    """The part of a job's `Hyperparameters` that rollout workers and their engines read, with the checks of it."""

    # generation
    engine: Literal["vllm", "transformers"] = Field("vllm", description="Engine that generates completions.")
    rollout_workers: int = Field(1, ge=1, le=256, description="Rollout workers, each with an engine of its own.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    max_tokens: WholeNumber = Field(256, ge=1, description="Maximum tokens of a completion.")
    max_context: WholeNumber = Field(2048, ge=8, description="Maximum tokens of prompt and completion together.")
    max_running: int = Field(128, ge=1, le=4096, description="Maximum completions that one worker decodes at a time.")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        le=MAX_FLOAT,
        description="Memory of the KV cache of each of an engine's devices, in GiB; 1 by default, and for vllm on GPUs "
        "what the model leaves of gpu_memory_utilization.",
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that an engine takes for weights, activations and KV cache together; 0.9 "
        "of its part of the GPU by default. What is left holds the next version, if it fits. Without effect on CPUs.",
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Devices that the weights of one engine are split over: GPUs of one node; on CPUs, processes that "
        "share the engine's cores.",
    )
    max_num_batched_tokens: WholeNumber | None = Field(
        None,
        ge=1,
        description="Tokens that an engine computes in one step, of prompts and completions together: 8192 on GPUs by "
        "default, on CPUs vLLM's choice. Fewer make a step shorter, and the reading of prompts slower.",
    )
    enforce_eager: bool = Field(
        False,
        description="No compilation and no CUDA graphs: the engine starts sooner and generates slower. Always so on "
        "CPUs.",
    )
    quantization: Literal["fp8"] | None = Field(
        None,
        description="Precision of an engine's linear layers, on GPUs: fp8 halves their memory. Engine and learner then "
        "differ, which max_mismatch must allow and importance corrects.",
    )
    engine_options: dict[str, Any] = Field(
        {},
        description="Further options of vLLM's, by their names there. Those that would break what training relies on "
        "are refused, with the reason.",
    )

    @field_validator("temperature", "kv_cache_gib")
    @classmethod
    def _not_nearly_nothing(cls, value: float | None, info: ValidationInfo) -> float | None:
        least = MIN_TEMPERATURE if info.field_name == "temperature" else MIN_CACHE_GIB
        if value is not None and value < least:
            raise ValueError(f"{value:g} is too near to 0: give at least {least:g}")
        return value

    @field_validator("engine_options")
    @classmethod
    def _known_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_engine_options(options)
        return options

    @model_validator(mode="after")
    def _serves_what_is_asked(self) -> Self:
        """Refuses lengths and sizes that contradict each other, and settings that the engine does not have."""
        if self.max_tokens >= self.max_context:
            raise ValueError("max_tokens must leave room for a prompt: raise max_context or lower max_tokens")
        if self.engine != "vllm":
            for name in VLLM_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is a setting of the engine vllm: leave it out with {self.engine}")
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_running:
            raise ValueError(
                f"max_num_batched_tokens must hold a token of each of max_running = {self.max_running} completions: "
                f"set at least {self.max_running}, or lower max_running"
            )
        return self
