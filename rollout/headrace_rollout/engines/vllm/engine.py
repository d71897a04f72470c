"""The vLLM engine: the protocol of `engine` on vLLM's AsyncLLM, on GPUs and CPUs.

    this process                                      vLLM's engine process             its worker process
    generate ─► [gate] ─► AsyncLLM ── request ──────► scheduler ── step, step, … ─────► model
    update   ─► stage ──────────────────────────────────────────────────────────────► staging thread
             ─► close gate, pause ─────────────────► no step is scheduled or in flight
             ─► commit ─────────────────────────────────────────────────────────────► swap weights
             ─► version label, caches, resume ─────► steps go on
    watch    ─► is the engine process alive?

Beyond the protocol's invariants:

* No step runs between the swap of the weights and the change of the version label that vLLM puts on every token, so
  that labels are exact. vLLM acknowledges a pause only when no step is in flight, also under asynchronous scheduling.
* A pause always ends: `resume` is sent whatever happened in between, and a switch that has begun runs to its end even
  if the caller of `update` is cancelled.
* A request's prefix cache is salted with the version at its submission, and none is submitted while the gate is closed.
  (A request that vLLM had queued but not scheduled before an update counts as in flight: under `keep_kv` it may use the
  older cache.)
* If versions are adapters in a slot of vLLM, all requests run through that slot, from the first version on.
* All waits on vLLM (requests, updates) raise `EngineFailure` when its process dies or the engine is closed.

A greedy request's log-probabilities are those of the untempered softmax, over the whole vocabulary.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from headrace_core.errors import TimedOut, WeightsDamaged

from ...end_of_text import end_tokens
from ..busy_clock import BusyClock
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
from . import launch
from .outputs import columns, per_token, prompt_scores, report_tokens
from .process import VllmProcess
from .requests import require_servable, sampling_params
from .weight_updates import slot_request

Result = TypeVar("Result")

SCORE_ATTEMPTS = 3
"""Attempts to score a sequence within one version; only the last one delays updates until it has ended."""


class VllmEngine:
    """An `Engine` on vLLM; see the module."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._version = config.version
        self._process: VllmProcess | None = None
        self._clock = BusyClock()
        self._gate = asyncio.Event()
        self._updating = asyncio.Lock()
        self._request_ids = itertools.count()
        self._in_flight: dict[str, int] = {}
        """Tokens of each running request when they were last counted, by its id."""
        self._ended_tokens = 0
        self._stop_tokens: tuple[int, ...] = ()
        self._vocabulary = self._longest_scored = 0
        self._slot: Any = None

    @property
    def version(self) -> int:
        return self._version

    @property
    def running(self) -> int:
        return len(self._in_flight)

    @property
    def busy_seconds(self) -> float:
        return self._clock.seconds

    @property
    def sampled_tokens(self) -> int:
        if self._process is not None:
            counted = self._process.tokens_in_flight()
            self._in_flight = {name: counted.get(name, before) for name, before in self._in_flight.items()}
        return self._ended_tokens + sum(self._in_flight.values())

    async def start(self) -> None:
        try:
            self._vocabulary = launch.text_settings(self._config.model).vocab_size
            self._longest_scored = launch.context_length(self._config)
            self._stop_tokens = end_tokens(self._config.model)
            self._process = await VllmProcess.start(self._config)
            if launch.in_slot(self._config):
                self._slot = slot_request(self._config.model)
            await self._process.on_workers("headrace_prepare", self._config.distributions)
            await self._process.label(self._version)
        except Exception as error:
            await self.close()
            code = error.code if isinstance(error, EngineFailure) else None
            raise EngineFailure(f"vLLM did not start on {self._config.model}: {error}", code=code) from error
        self._gate.set()

    async def generate(
        self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig, on_tokens: OnTokens | None = None
    ) -> Sampled:
        require_servable(prompt, sampling.max_tokens, self._config.max_model_len, self._vocabulary)
        require_measurable(sampling, self._config)
        require_constrainable(sampling, self._config)
        final = await self._submit(prompt, sampling_params(sampling, self._stop_tokens), on_tokens)
        completion = final.outputs[0]
        if completion.finish_reason == "error" and sampling.json_schema is not None:  # vLLM's log has its own words
            raise RequestRefused("the JSON schema needs more than vLLM's limits on time and memory allow")
        if completion.finish_reason not in ("stop", "length"):
            raise EngineFailure(f"vLLM ended a request with reason {completion.finish_reason!r}")
        measured = columns(completion)
        return Sampled(
            token_ids=np.asarray(completion.token_ids, dtype=np.int32),
            logprobs=measured[0],
            versions=per_token(completion.weight_versions, len(completion.token_ids)),
            finish_reason=completion.finish_reason,
            entropies=measured[1] if sampling.distribution else None,
            certainties=measured[2] if sampling.distribution else None,
        )

    async def score(self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0) -> Scored:
        """See `Engine.score`. Temperature 0 counts as 1, as in the reported log-probabilities of a greedy request.

        A scoring during which an update happened is repeated; the last attempt blocks updates, so that it succeeds. At
        a temperature other than 1 it fetches whole distributions from vLLM: vocabulary × length numbers.
        """
        from vllm import SamplingParams

        if not 1 <= start <= len(tokens) or temperature < 0:
            raise RequestRefused(f"cannot score {len(tokens)} tokens from {start} at temperature {temperature}")
        temperature = temperature or 1.0
        require_servable(tokens, 1, self._longest_scored, self._vocabulary)
        wanted = 0 if temperature == 1.0 else -1

        async def attempt() -> Scored | None:
            """None: an update came in between."""
            version = self._version
            params = SamplingParams(max_tokens=1, prompt_logprobs=wanted, flat_logprobs=True, detokenize=False)
            final = await self._submit(tokens, params)
            if version != self._version:
                return None
            return Scored(prompt_scores(final.prompt_logprobs, tokens, start, temperature), version)

        for _ in range(SCORE_ATTEMPTS - 1):
            if (scored := await attempt()) is not None:
                return scored
        async with self._updating:
            scored = await attempt()
        assert scored is not None  # the lock excludes updates
        return scored

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """See `Engine.update`."""
        async with self._updating:
            process = self._alive()
            staged = await self._stage(process, weights)
            in_flight = self.running
            self._gate.clear()
            try:
                paused = await _to_its_end(self._commit(process, version, mode or self._config.update_mode))
            finally:
                self._gate.set()
        return UpdateReport(version, staged, paused, in_flight)

    async def probe(self, limit: float) -> None:
        await self._alive().probe(limit)

    async def close(self) -> None:
        if self._process is not None:
            await self._process.close()
        self._gate.set()

    def _alive(self) -> VllmProcess:
        if self._process is None:
            raise EngineFailure("the vLLM engine is not running")
        self._process.require_alive()
        return self._process

    # --- requests ---------------------------------------------------------------------------------------------

    async def _submit(self, tokens: npt.NDArray[np.int32], params: Any, on_tokens: OnTokens | None = None) -> Any:
        """vLLM's final output for one request, which counts as running from here on."""
        process, name = self._alive(), str(next(self._request_ids))
        self._in_flight[name] = 0
        self._clock.enter()
        try:
            collected = self._collect(process, name, tokens, params, on_tokens)
            final = await process.call(collected, "the end of a request", limit=None)
            self._in_flight[name] = len(final.outputs[0].token_ids)
            return final
        finally:
            self._clock.leave()
            self._ended_tokens += self._in_flight.pop(name)

    async def _collect(
        self, process: VllmProcess, name: str, tokens: npt.NDArray[np.int32], params: Any, on_tokens: OnTokens | None
    ) -> Any:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        await self._gate.wait()
        process.require_alive()
        params.output_kind = RequestOutputKind.FINAL_ONLY if on_tokens is None else RequestOutputKind.CUMULATIVE
        prompt = tokens_input(tokens.tolist(), cache_salt=f"version {self._version}")
        try:
            stream = process.llm.generate(prompt, params, name, lora_request=self._slot)
            reported = 0
            async for output in stream:
                final = output
                if on_tokens is not None:
                    reported = report_tokens(on_tokens, output.outputs[0], reported)
        except (VLLMClientError, ValueError) as error:
            raise RequestRefused(str(error)) from error
        return final

    # --- updates ----------------------------------------------------------------------------------------------

    async def _stage(self, process: VllmProcess, weights: Path) -> float:
        """Prepare `weights` in the workers while generation continues. Returns the seconds it took."""
        await process.on_workers("headrace_stage", str(weights))
        limit = self._config.update_timeout
        deadline = time.monotonic() + limit
        pause = 0.005
        while time.monotonic() < deadline:
            states = await process.on_workers("headrace_stage_state")
            if all(state != "staging" for state, _ in states):  # a worker still at it would refuse the next version
                for state, _ in states:
                    if state != "ready":
                        raise WeightsDamaged(f"the weights in {weights} cannot be loaded: {state}")
                return max(float(seconds) for _, seconds in states)
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 1.5)
        raise TimedOut(f"the weights in {weights} were not staged within {limit:g} s")

    async def _commit(self, process: VllmProcess, version: int, mode: UpdateMode) -> float:
        """Switch to the staged weights. Returns the seconds in which no step could run."""
        async with process.paused(drain=mode == "drain"):
            with self._clock.paused():
                began = time.monotonic()
                try:
                    await self._switch(process, version, mode)
                except Exception as error:
                    # Weights, label and caches may no longer agree, so that no further token could be trusted.
                    reason = f"the {mode} update to version {version} was cut in the middle: {error}"
                    process.end(reason)
                    raise EngineFailure(reason) from error
        return time.monotonic() - began

    async def _switch(self, process: VllmProcess, version: int, mode: UpdateMode) -> None:
        """Switch weights, label and caches. Generation must be paused."""
        await process.on_workers("headrace_commit")
        await process.label(version)
        self._version = version
        if mode == "keep_kv":
            return
        reset = process.llm.engine_core.reset_prefix_cache_async(mode == "recompute")
        if not await process.call(reset, "the reset of caches"):
            raise EngineFailure("vLLM kept caches of older weights")


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. If the caller is cancelled, `work` still runs to its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
