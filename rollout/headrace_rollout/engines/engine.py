"""The engine protocol: what a rollout worker needs of an inference engine.

    worker ── generate(request) ──►  engine: continuous slots, many requests in flight at once
           ── update(...)       ──►  new weights between two decode steps of the requests in flight
           ── score(...)        ──►  log-probabilities of given tokens

Invariants, which one contract suite checks for every engine (tests/rollout/test_engines.py):

* the log-probability of a sampled token is that of the distribution it was sampled from, with temperature and top-p
  applied, and under a JSON schema over the tokens that the schema allows;
* every sampled token carries the policy version whose weights sampled it; after `update` returns, no later token
  carries an older one; all log-probabilities of one scoring are of one version, which it carries;
* entropies and certainties are those of the same distribution;
* a request that was accepted ends exactly once: with its tokens, or with `EngineFailure`;
* `on_tokens` gets each token of a request once, in order, before the request ends;
* a new request never reuses a prefix cache that older weights computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from headrace_core.errors import HeadraceError

UpdateMode = Literal["keep_kv", "recompute", "drain"]
"""What happens to requests in flight at a weight update: they keep the KV cache of the older weights (`keep_kv`,
PipelineRL), have it recomputed by the new weights (`recompute`, AReaL), or finish before the update (`drain`)."""


OnTokens = Callable[[Sequence[int], Sequence[float]], None]
"""Called in the event loop with the token ids that a request has sampled since the last call, and their natural
log-probabilities."""


class EngineFailure(HeadraceError):
    """The engine can no longer serve (its process died, or it refused the model). The worker must be replaced."""

    code = "engine_failure"


class RequestRefused(HeadraceError):
    """One request cannot be served (it is longer than the context, say); the engine continues."""

    code = "request_refused"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The configuration of an engine."""

    model: Path
    """Folder in Hugging Face format; its weights are policy version `version`."""
    version: int = 0
    max_model_len: int = 1024
    """Context: prompt and completion tokens together."""
    max_running: int = 256
    """Requests decoded at once (slots)."""
    threads: int = 1
    """OpenMP threads of the processes that compute, together."""
    kv_cache_gib: float | None = None
    """GiB of KV cache of each device; None: on a GPU what the model leaves of `gpu_memory_utilization`, else 1."""
    gpus: float = 1.0
    """GPUs that the engine was given, where there are any: a part of one, or one for each of `tensor_parallel_size`."""
    gpu_memory_utilization: float | None = None
    """Share of each GPU's memory for weights, activations and KV cache; None: nine tenths of the engine's part."""
    tensor_parallel_size: int = 1
    """Processes, each with a device of its own where there are GPUs, over which the weights are split. vLLM only, like
    the settings below."""
    max_num_batched_tokens: int | None = None
    """Tokens computed in one step; None: the device's default."""
    enforce_eager: bool = False
    quantization: str | None = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own options; `headrace_core.config.engine_options` says which a job may set."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: float32 on a CPU (bfloat16 has no hardware there), the model's own on a GPU."""
    seed: int = 0
    update_mode: UpdateMode = "keep_kv"
    lora_rank: int | None = None
    """Versions are LoRA adapters of up to this rank; None: they are full weights."""
    adapters: Literal["auto", "merged", "slot"] = "auto"
    """`merged`: adapters are merged into the weights while a version is staged. `slot`: they run beside the weights in
    vLLM's LoRA layers. `auto`: merged on a CPU, where those layers made decoding 3 times slower; a slot on a GPU, where
    merging would stage full weights and round the adapter to bfloat16 (decision 0014)."""
    distributions: bool = False
    """Requests may ask for `SamplingConfig.distribution`. vLLM then uses its first model runner on a GPU too."""
    json_schemas: bool = False
    """Requests may ask for `SamplingConfig.json_schema`. vLLM then loads the model's tokenizer."""
    start_timeout: float = 300.0
    """Seconds after which an unfinished start raises `EngineFailure`."""
    update_timeout: float = 240.0
    """Seconds after which an update raises `TimedOut`, because the weights are not prepared or requests not drained."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How to sample. `temperature` 0 is greedy decoding."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the completion, in addition to the model's end-of-text tokens. The stopping token is part of the
    completion."""
    seed: int | None = None
    distribution: bool = False
    """Measure each distribution sampled from: see `Sampled.entropies`. Refused with `top_p` below 1."""
    json_schema: str | None = None
    """Constrain the completion to this JSON schema: tokens that violate it are never sampled, and the distribution
    sampled from is the model's, renormalised over the others. A completion that reaches `max_tokens` is still cut
    off."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled completion of T tokens."""

    token_ids: npt.NDArray[np.int32]
    """[T], the stopping token included."""
    logprobs: npt.NDArray[np.float32]
    """[T], natural log, of the distribution sampled from. For a greedy request: of the untempered distribution."""
    versions: npt.NDArray[np.int32]
    """[T], the policy version that sampled each token."""
    finish_reason: Literal["stop", "length"]
    entropies: npt.NDArray[np.float32] | None = None
    """[T], nats: entropies of the distributions sampled from; None unless `SamplingConfig.distribution`."""
    certainties: npt.NDArray[np.float32] | None = None
    """[T], nats: KL(uniform ‖ distribution), over the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of given tokens by one policy version."""

    logprobs: npt.NDArray[np.float32]
    """Natural log, one for each token."""
    version: int


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """The cost of one weight update."""

    version: int
    staged_seconds: float
    """Duration of reading and preparing the weights, while generation continued."""
    paused_seconds: float
    """Duration in which no token could be sampled."""
    requests_in_flight: int


def require_measurable(sampling: SamplingConfig, config: EngineConfig) -> None:
    """Raise `RequestRefused` if the request wants a distribution measured that this engine cannot measure.

    With `top_p` below 1, KL(uniform ‖ distribution) is infinite.
    """
    if sampling.distribution and not config.distributions:
        raise RequestRefused("this engine was started without `distributions`")
    if sampling.distribution and sampling.top_p < 1:
        raise RequestRefused(f"a distribution cut by top_p {sampling.top_p:g} is not measured: set top_p to 1")


def require_constrainable(sampling: SamplingConfig, config: EngineConfig) -> None:
    """Raise `RequestRefused` if the request has a JSON schema, and the engine was not started for schemas."""
    if sampling.json_schema is not None and not config.json_schemas:
        raise RequestRefused("this engine was started without `json_schemas`: it holds no completion to a schema")


class Engine(Protocol):
    """An inference engine with the module's invariants. All methods but `start` may be called concurrently."""

    @property
    def version(self) -> int:
        """The policy version that samples now."""
        ...

    @property
    def running(self) -> int:
        """Number of requests accepted and not yet ended."""
        ...

    @property
    def busy_seconds(self) -> float:
        """Seconds since `start` during which at least one request was in flight and generation was not paused."""
        ...

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since `start`, those of requests in flight included."""
        ...

    async def start(self) -> None:
        """Load the model. Raises `EngineFailure`, which names the cause, within `start_timeout`."""
        ...

    async def generate(
        self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig, on_tokens: OnTokens | None = None
    ) -> Sampled:
        """One completion of `prompt` ([P] token ids). Cancelling the task frees its slot.

        Raises `RequestRefused` or `EngineFailure`.
        """
        ...

    async def score(self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0) -> Scored:
        """Log-probabilities [len(tokens) - start] of tokens[start:], each given all tokens before it, by the present
        weights. Raises `RequestRefused` or `EngineFailure`."""
        ...

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """Apply a folder of weights (safetensors, Hugging Face names) as `version`; `mode` overrides the default.

        The folder may instead hold a LoRA adapter in PEFT's format, for the model the engine was started with. Raises
        `WeightsDamaged` or `TimedOut`; then the engine continues with the weights it has.
        """
        ...

    async def probe(self, limit: float) -> None:
        """Returns when the computing process or thread has answered, between two decode steps. Raises `EngineFailure`
        after `limit` seconds."""
        ...

    async def close(self) -> None:
        """Stop. Requests in flight fail with `EngineFailure`; no process of the engine remains. Idempotent."""
        ...
