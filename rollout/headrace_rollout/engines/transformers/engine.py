"""The `transformers` engine: continuous batching in plain torch, for machines where vLLM cannot be installed.

    generate, score, update (asyncio) ──► DecodeThread ──► Decoder ──► SlotTable   rows, and what they sampled
            ▲                                                   └────► PolicyModel model, slot cache, forward passes
            └───────────── futures ◄────────────┘

It implements the protocol of `engine`. There is no prefix cache that could be stale: only equal prompts that are
prefilled in one pass share a computation. Weights are read while decoding continues, and become the model's by swapping
pointers between two steps, so that the pause does not grow with the model (except for `recompute`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headrace_core.concurrency import while_moving
from headrace_core.errors import TimedOut

from ..engine import (
    EngineConfig,
    EngineFailure,
    OnTokens,
    RequestRefused,
    Sampled,
    SamplingConfig,
    Scored,
    UpdateMode,
    UpdateReport,
    require_constrainable,
    require_measurable,
)
from ..json_constraint import JsonConstraint, JsonConstraints
from .batch_slots import Generation, OnToken
from .decode_thread import DecodeThread, Job, Probe, Scoring, WeightUpdate
from .decoder import Decoder
from .policy_model import PolicyModel

T = TypeVar("T")
TURN_SECONDS = 60.0
"""Limit on the time until the decode thread takes a job, which it does between two steps; a step is far shorter."""
CLOSE_SECONDS = 30.0


class TransformersEngine:
    """An `Engine` for any causal language model of transformers with full attention."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._thread = DecodeThread(self._load, config.threads)
        self._decoder: Decoder | None = None
        self._updating = asyncio.Lock()
        self._constraints: JsonConstraints | None = None
        self._reading_tokenizer = asyncio.Lock()

    @property
    def version(self) -> int:
        """The policy version that samples now."""
        return self._config.version if self._decoder is None else self._decoder.version

    @property
    def running(self) -> int:
        """Number of requests accepted and not yet ended, scorings included."""
        return self._thread.in_flight

    @property
    def busy_seconds(self) -> float:
        """Seconds with at least one request in flight, pauses excluded."""
        return self._thread.busy.seconds

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since `start`, those of requests in flight included."""
        return 0 if self._decoder is None else self._decoder.sampled_tokens

    async def start(self) -> None:
        """Load the model; raises `EngineFailure`, naming the cause, within `start_timeout`."""
        self._thread.start()
        limit = self._config.start_timeout
        try:
            self._decoder = await asyncio.wait_for(asyncio.wrap_future(self._thread.ready), limit)
        except TimeoutError as error:
            raise EngineFailure(f"model {self._config.model} was not loaded within {limit:g} s") from error

    async def generate(
        self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig, on_tokens: OnTokens | None = None
    ) -> Sampled:
        """One completion of `prompt`; raises `RequestRefused` (the request cannot be served) or `EngineFailure`."""
        decoder = self._started()
        _check_sampling(sampling)
        require_measurable(sampling, self._config)
        self._check_tokens(decoder, prompt, len(prompt) + sampling.max_tokens)
        require_constrainable(sampling, self._config)
        on_token = None if on_tokens is None else _in_this_loop(on_tokens)
        constraint = None if sampling.json_schema is None else await self._constraint(decoder, sampling.json_schema)
        job = Generation(np.ascontiguousarray(prompt, np.int32), sampling, on_token, constraint)
        return await self._ended(job, job.future)

    async def score(self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0) -> Scored:
        """Log-probabilities of tokens[start:] under the present weights; temperature 0 counts as 1."""
        decoder = self._started()
        self._check_tokens(decoder, tokens, len(tokens))
        if not 1 <= start <= len(tokens) or temperature < 0:
            raise RequestRefused(f"cannot score {len(tokens)} tokens from {start} at temperature {temperature}")
        job = Scoring(np.ascontiguousarray(tokens, np.int32), start, temperature)
        return await self._ended(job, job.future)

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """Apply the weights in folder `weights` as `version`. Concurrent updates are applied in the order of the calls.

        Raises `WeightsDamaged` if they are incomplete or of another model, and `TimedOut` if neither the update was
        applied nor a token sampled within `update_timeout`; then the engine continues with the weights it has.
        """
        async with self._updating:
            decoder = self._started()
            began = time.perf_counter()
            limit = self._config.update_timeout
            staged = await _within(limit, f"{weights} to be read", asyncio.to_thread(decoder.model.stage, weights))
            staged_seconds = time.perf_counter() - began
            job = WeightUpdate(version, staged, mode or self._config.update_mode)
            paused_seconds, in_flight = await self._applied(job, limit + TURN_SECONDS)
            # `staged` now holds the replaced weights. Freeing 540 MB takes 80 ms, so it is done outside the pause.
            await asyncio.to_thread(staged.clear)
        return UpdateReport(version, staged_seconds, paused_seconds, in_flight)

    async def _applied(self, job: WeightUpdate, limit: float) -> tuple[float, int]:
        """The result of an update, which takes as long as running requests sample tokens, if they are to drain first.
        Raises `TimedOut`."""

        async def sampled() -> int:
            return self.sampled_tokens

        try:
            return await while_moving(self._ended(job, job.future), limit, sampled, self.sampled_tokens)
        except TimeoutError as error:
            raise TimedOut(f"waited {limit:g} s for the decode thread to take version {job.version}") from error

    async def probe(self, limit: float) -> None:
        """Returns when the decode thread has taken its next turn; raises `EngineFailure` after `limit` seconds."""
        self._started()
        job = Probe()
        try:
            await _within(limit, "the decode thread's next turn", self._ended(job, job.future))
        except TimedOut as error:
            raise EngineFailure(str(error)) from error

    async def close(self) -> None:
        """Stop the decode thread; requests in flight fail with `EngineFailure`. Idempotent."""
        await asyncio.to_thread(self._thread.close, CLOSE_SECONDS)

    def _load(self) -> Decoder:
        return Decoder(PolicyModel(self._config), self._config)

    def _started(self) -> Decoder:
        self._thread.check()
        if self._decoder is None:
            raise EngineFailure("the engine has not started")
        return self._decoder

    async def _constraint(self, decoder: Decoder, schema: str) -> JsonConstraint:
        async with self._reading_tokenizer:  # the first request with a schema reads the tokenizer
            if self._constraints is None:
                model = decoder.model
                self._constraints = await asyncio.to_thread(
                    JsonConstraints, self._config.model, model.vocab_size, model.stop_ids
                )
        return await asyncio.to_thread(self._constraints.constraint, schema)

    async def _ended(self, job: Job, future: Future[T]) -> T:
        """Submit `job` and wait for its end; if the waiting task is cancelled, the job is too."""
        self._thread.submit(job)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._thread.cancel(job)
            raise

    def _check_tokens(self, decoder: Decoder, tokens: npt.NDArray[np.int32], total: int) -> None:
        if total > self._config.max_model_len:
            raise RequestRefused(
                f"{total} tokens, prompt and completion together, exceed max_context {self._config.max_model_len}"
            )
        # An id outside the vocabulary would raise an error in the model, and fail the whole batch.
        if tokens.ndim != 1 or len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= decoder.model.vocab_size:
            raise RequestRefused(f"a request needs token ids in 0 … {decoder.model.vocab_size - 1}, at least one")


async def _within(limit: float, what: str, work: Awaitable[T]) -> T:
    """The result of `work`. Raises `TimedOut`, which names `what` was waited for, after `limit` seconds."""
    try:
        return await asyncio.wait_for(work, limit)
    except TimeoutError as error:
        raise TimedOut(f"waited {limit:g} s for {what}") from error


def _in_this_loop(on_tokens: OnTokens) -> OnToken:
    """A thread-safe callback that calls `on_tokens` in the present event loop."""
    loop = asyncio.get_running_loop()

    def on_token(token: int, logprob: float) -> None:
        with suppress(RuntimeError):  # the loop was closed, so that nothing waits for the request any more
            loop.call_soon_threadsafe(on_tokens, (token,), (logprob,))

    return on_token


def _check_sampling(sampling: SamplingConfig) -> None:
    """Raise `RequestRefused` for parameters out of range."""
    if sampling.max_tokens < 1:
        raise RequestRefused(f"max_tokens is {sampling.max_tokens}: at least 1 is needed")
    if not sampling.temperature >= 0 or not 0 < sampling.top_p <= 1:
        raise RequestRefused(f"temperature {sampling.temperature} or top_p {sampling.top_p} is out of range")
