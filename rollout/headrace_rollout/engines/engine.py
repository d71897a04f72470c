"""The engine port: what a rollout worker asks of whatever generates tokens.

    worker ── generate(request) ──►  engine: continuous slots, many requests in flight at once
           ── update(...)       ──►  new weights between two decode steps of the requests in flight
           ── score(...)        ──►  log-probabilities of given tokens

Invariants, held for every engine by one contract suite (tests/rollout/test_engines.py):

* the log-probability of a sampled token is that of the distribution it was sampled from, temperature and top-p
  applied, and of a completion held to a JSON schema over the tokens that it allows;
* every sampled token carries the policy version whose weights sampled it; after `update` returns, no later token
  carries an older one; all log-probabilities of one scoring are of one version, which it carries;
* entropies and certainties are those of the same distribution;
* a request that was accepted ends exactly once: with its tokens, or with `EngineFailure`;
* who asks to be told of a request's tokens as they are sampled is told of each once, in order, before it ends;
* a new request never reuses a prefix cache that older weights computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from headrace_core.errors import HeadraceError

UpdateMode = Literal["keep_kv", "recompute", "drain"]
"""What becomes of requests in flight at a weight update: they go on with the cache older weights computed (`keep_kv`,
PipelineRL), have it recomputed by the new weights (`recompute`, AReaL), or finish before the update (`drain`)."""


OnTokens = Callable[[Sequence[int], Sequence[float]], None]
"""Told, in the event loop, of the token ids that a request has sampled since the last call, with log-probabilities."""


class EngineFailure(HeadraceError):
    """The engine cannot serve any more (its process died, or it refused the model). The worker must be replaced."""

    code = "engine_failure"


class RequestRefused(HeadraceError):
    """One request cannot be served (longer than the context, say); the engine goes on."""

    code = "request_refused"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is started with. `model` is a folder in Hugging Face format; its weights are policy `version`."""

    model: Path
    version: int = 0
    max_model_len: int = 1024
    """Context: prompt and completion tokens together."""
    max_running: int = 256
    """Requests decoded at once (slots)."""
    threads: int = 1
    """OpenMP threads of the process that computes."""
    kv_cache_gib: float = 1.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: float32 on a CPU (bfloat16 has no hardware there), the model's own on a GPU."""
    seed: int = 0
    update_mode: UpdateMode = "keep_kv"
    lora_rank: int | None = None
    """Versions are adapters of up to this rank; None: they are whole weights."""
    adapters: Literal["auto", "merged", "slot"] = "auto"
    """Adapters are merged into the weights while a version is staged, or run beside them in vLLM's LoRA layers. `auto`:
    merged on a CPU, where those layers made decoding 3 times slower; a slot on a GPU, where merging would stage whole
    weights and round the adapter to bfloat16 (decision 0014)."""
    distributions: bool = False
    """Requests may ask for `SamplingConfig.distribution`. vLLM then uses its first model runner on a GPU too."""
    json_schemas: bool = False
    """Requests may ask for `SamplingConfig.json_schema`. vLLM then loads the model's tokenizer."""
    start_timeout: float = 300.0
    """Seconds until a start that has not finished is an `EngineFailure`."""
    update_timeout: float = 240.0
    """Seconds until weights that are not prepared, or requests that have not drained, end an update with `TimedOut`."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How to sample. `temperature` 0 is greedy decoding."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """Beside the model's own end-of-sequence tokens. The stopping token is part of the completion."""
    seed: int | None = None
    distribution: bool = False
    """Measure each distribution sampled from: see `Sampled.entropies`. Refused with `top_p` under 1."""
    json_schema: str | None = None
    """Hold the completion to this JSON schema: tokens that lead out of it are never sampled, and the distribution
    sampled from is the model's over the others. A completion that reaches `max_tokens` is cut off all the same."""


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
    """[T], nats, of the distributions that `logprobs` are of; where `SamplingConfig.distribution` asked for it."""
    certainties: npt.NDArray[np.float32] | None = None
    """[T], nats: KL(uniform ‖ distribution), over the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Given tokens, as one policy version sees them."""

    logprobs: npt.NDArray[np.float32]
    """One a token, natural log."""
    version: int


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one weight update cost."""

    version: int
    staged_seconds: float
    """Reading and preparing the weights while generation went on."""
    paused_seconds: float
    """No token could be sampled."""
    requests_in_flight: int


def require_measurable(sampling: SamplingConfig, config: EngineConfig) -> None:
    """Raise `RequestRefused` where a distribution is asked for that this engine does not measure.

    Where `top_p` cuts it, KL(uniform ‖ it) is infinite.
    """
    if sampling.distribution and not config.distributions:
        raise RequestRefused("this engine was started without `distributions`")
    if sampling.distribution and sampling.top_p < 1:
        raise RequestRefused(f"a distribution cut by top_p {sampling.top_p:g} is not measured: set top_p to 1")


def require_constrainable(sampling: SamplingConfig, config: EngineConfig) -> None:
    """Raise `RequestRefused` where a JSON schema is given to an engine that was not started for them."""
    if sampling.json_schema is not None and not config.json_schemas:
        raise RequestRefused("this engine was started without `json_schemas`: it holds no completion to a schema")


class Engine(Protocol):
    """See the module's picture and invariants. All methods but `start` may be called concurrently."""

    @property
    def version(self) -> int:
        """The policy version that samples now."""
        ...

    @property
    def running(self) -> int:
        """Requests accepted and not yet ended."""
        ...

    @property
    def busy_seconds(self) -> float:
        """Seconds since `start` during which at least one request was in flight and generation was not paused."""
        ...

    async def start(self) -> None:
        """Load the model and be ready; raises `EngineFailure`, naming the cause, within `start_timeout`."""
        ...

    async def generate(
        self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig, on_tokens: OnTokens | None = None
    ) -> Sampled:
        """One completion of `prompt` ([P] token ids). Cancelling the task frees its slot."""
        ...

    async def score(self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0) -> Scored:
        """Log-probabilities [len(tokens) - start] of tokens[start:], given all before each, by present weights."""
        ...

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """Apply a folder of weights (safetensors, Hugging Face names) as `version`; `mode` overrides the default.

        The folder may hold a LoRA adapter in PEFT's format instead: of the model the engine was started with. Raises
        `WeightsDamaged`, or `TimedOut` within its limits: the engine goes on with the weights it has.
        """
        ...

    async def probe(self, limit: float) -> None:
        """Returns when what computes has answered, between two steps; raises `EngineFailure` after `limit` seconds."""
        ...

    async def close(self) -> None:
        """Stop; requests in flight fail with `EngineFailure`. No process of the engine is left. Idempotent."""
        ...
