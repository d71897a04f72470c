"""The vLLM engine: the port of `base`, on vLLM's AsyncLLM, on a GPU and on a CPU alike.

    this process                                      vLLM's engine process             its worker process
    generate ─► [gate] ─► AsyncLLM ── request ──────► scheduler ── step, step, … ─────► model
    update   ─► stage ──────────────────────────────────────────────────────────────► staging thread
             ─► close gate, pause ─────────────────► no step is scheduled or in flight
             ─► commit ─────────────────────────────────────────────────────────────► swap weights
             ─► version label, caches, resume ─────► steps go on
    watch    ─► is the engine process alive?

Beyond the port's invariants:

* No step runs between the swap of the weights and that of the version label vLLM puts on every token, so labels are
  exact; vLLM acknowledges a pause only when no step is in flight, also under asynchronous scheduling.
* A pause always ends: `resume` is sent whatever happened in between, and a switch once begun runs to its end even where
  the caller of `update` is cancelled.
* A request's prefix cache is salted with the version at its submission, and none is submitted while the gate is closed.
  (One that vLLM had queued, unscheduled, before an update counts as in flight: under `keep_kv` it may use the older
  cache.)
* Whoever waits on vLLM (a request, an update) is woken with `EngineFailure` when its process dies or the engine closes.

A greedy request's log-probabilities are those of the untempered softmax, over the whole vocabulary.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from headrace_core.errors import TimedOut, WeightsDamaged
from headrace_rollout.engines import vllm_start
from headrace_rollout.engines.base import (
    EngineConfig,
    EngineFailure,
    RequestRefused,
    Sampled,
    SamplingConfig,
    UpdateMode,
    UpdateReport,
)
from headrace_rollout.engines.busy_clock import BusyClock

Result = TypeVar("Result")

CALL_LIMIT = 60.0
"""Seconds a call into vLLM's processes may take; the longest regular wait is for one step to end."""
STAGE_LIMIT = 600.0
DRAIN_LIMIT = 600.0
WATCH_INTERVAL = 0.2
"""Seconds between two looks at vLLM's process."""
SCORE_ATTEMPTS = 5
"""Scorings of one sequence until none of them was cut by an update."""


class VllmEngine:
    """See the module docstring, and `base.Engine` for the methods."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._version = config.version
        self._llm: Any = None
        self._ended: asyncio.Future[str] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._running = 0
        self._clock = BusyClock()
        self._gate = asyncio.Event()
        self._update_lock = asyncio.Lock()
        self._request_ids = itertools.count()
        self._stop_tokens: tuple[int, ...] = ()

    @property
    def version(self) -> int:
        return self._version

    @property
    def running(self) -> int:
        return self._running

    @property
    def busy_seconds(self) -> float:
        return self._clock.seconds

    async def start(self) -> None:
        limit = self._config.start_timeout
        deadline = time.monotonic() + limit
        self._ended = asyncio.get_running_loop().create_future()
        try:
            self._stop_tokens = vllm_start.end_tokens(self._config.model)
            self._llm = await _bring_up(self._config)
            await self._call(self._llm.collective_rpc("headrace_prepare"), "prepare", deadline - time.monotonic())
            await self._label(self._version)
        except Exception as error:
            await self.close()
            raise EngineFailure(f"vLLM did not start on {self._config.model}: {error}") from error
        self._watcher = asyncio.create_task(self._watch(), name="vllm-watch")
        self._gate.set()

    async def generate(self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig) -> Sampled:
        self._require_room(len(prompt), sampling.max_tokens)
        final = await self._submit(prompt, self._sampling_params(sampling))
        completion = final.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineFailure(f"vLLM ended a request with reason {completion.finish_reason!r}")
        return Sampled(
            token_ids=np.asarray(completion.token_ids, dtype=np.int32),
            logprobs=np.asarray(completion.logprobs.logprobs, dtype=np.float32),
            versions=_per_token(completion.weight_versions, len(completion.token_ids)),
            finish_reason=completion.finish_reason,
        )

    async def score(
        self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0
    ) -> npt.NDArray[np.float32]:
        """As the port says; temperature 0 counts as 1, as in the reported log-probabilities of a greedy request.

        At a temperature other than 1 it fetches whole distributions from vLLM: vocabulary × length numbers.
        """
        from vllm import SamplingParams

        if not 1 <= start <= len(tokens) or temperature < 0:
            raise RequestRefused(f"cannot score {len(tokens)} tokens from {start} at temperature {temperature}")
        temperature = temperature or 1.0
        longest = vllm_start.context_length(self._config) - 1
        if len(tokens) > longest:
            raise RequestRefused(f"cannot score {len(tokens)} tokens: the limit is {longest}")
        wanted = 0 if temperature == 1.0 else -1
        for _ in range(SCORE_ATTEMPTS):
            version = self._version
            params = SamplingParams(max_tokens=1, prompt_logprobs=wanted, flat_logprobs=True, detokenize=False)
            final = await self._submit(tokens, params)
            if version == self._version:
                return _prompt_scores(final.prompt_logprobs, tokens, start, temperature)
        raise TimedOut(f"updates cut each of {SCORE_ATTEMPTS} attempts to score a sequence of {len(tokens)} tokens")

    async def update(self, version: int, weights: Path, mode: UpdateMode | None = None) -> UpdateReport:
        """As the port says; raises `WeightsDamaged`, leaving the engine as it was, when `weights` cannot be loaded."""
        self._require_alive()
        async with self._update_lock:
            staged = await self._stage(weights)
            in_flight = self.running
            self._gate.clear()
            try:
                paused = await _to_its_end(self._commit(version, mode or self._config.update_mode))
            finally:
                self._gate.set()
        return UpdateReport(version, staged, paused, in_flight)

    async def close(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result("the engine was closed")
        self._gate.set()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        # Requests in flight wake, abort themselves and fail before vLLM goes away under them.
        await asyncio.sleep(0)
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    # --- requests ---------------------------------------------------------------------------------------------

    def _require_alive(self) -> None:
        if self._llm is None or self._ended is None:
            raise EngineFailure("the vLLM engine is not running")
        if self._ended.done():
            raise EngineFailure(self._ended.result())

    def _require_room(self, prompt_tokens: int, max_tokens: int) -> None:
        limit = self._config.max_model_len
        if prompt_tokens < 1 or max_tokens < 1:
            raise RequestRefused("a prompt and a completion have at least one token each")
        if prompt_tokens + max_tokens > limit:
            raise RequestRefused(
                f"{prompt_tokens} prompt + {max_tokens} completion tokens exceed the context of {limit}"
            )

    def _sampling_params(self, sampling: SamplingConfig) -> Any:
        from vllm import SamplingParams

        try:
            return SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_token_ids=[*self._stop_tokens, *sampling.stop_token_ids],
                seed=sampling.seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
        except ValueError as error:
            raise RequestRefused(str(error)) from error

    async def _submit(self, tokens: npt.NDArray[np.int32], params: Any) -> Any:
        """vLLM's final output for one request; counts as running from here on."""
        self._require_alive()
        self._running += 1
        self._clock.enter()
        try:
            return await self._call(self._collect(tokens, params), "the end of a request", limit=None)
        finally:
            self._clock.leave()
            self._running -= 1

    async def _collect(self, tokens: npt.NDArray[np.int32], params: Any) -> Any:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        await self._gate.wait()
        self._require_alive()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = tokens_input(tokens.tolist(), cache_salt=f"version {self._version}")
        try:
            outputs = [output async for output in self._llm.generate(prompt, params, str(next(self._request_ids)))]
        except (VLLMClientError, ValueError) as error:
            raise RequestRefused(str(error)) from error
        return outputs[-1]

    # --- updates ----------------------------------------------------------------------------------------------

    async def _stage(self, weights: Path) -> float:
        """Seconds it took to prepare `weights` in the worker, while generation went on."""
        await self._call(self._llm.collective_rpc("headrace_stage", args=(str(weights),)), "the start of staging")
        deadline = time.monotonic() + STAGE_LIMIT
        pause = 0.005
        while time.monotonic() < deadline:
            states = await self._call(self._llm.collective_rpc("headrace_stage_state"), "the state of staging")
            for state, _ in states:
                if state.startswith("failed"):
                    raise WeightsDamaged(f"the weights in {weights} cannot be loaded: {state}")
            if all(state == "ready" for state, _ in states):
                return max(float(seconds) for _, seconds in states)
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 1.5)
        raise TimedOut(f"the weights in {weights} were not staged within {STAGE_LIMIT:.0f} s")

    async def _commit(self, version: int, mode: UpdateMode) -> float:
        """Switch to the staged weights; returns the seconds no step could run."""
        async with self._paused(drain=mode == "drain") as began:
            try:
                await self._switch(version, mode)
            except Exception as error:
                # Weights, label and caches may no longer agree: no token of this engine could be trusted.
                self._end(f"the {mode} update to version {version} was cut in the middle: {error}")
                raise EngineFailure(f"the {mode} update to version {version} was cut in the middle: {error}") from error
        return time.monotonic() - began

    async def _switch(self, version: int, mode: UpdateMode) -> None:
        """Weights, label and caches, while paused."""
        await self._call(self._llm.collective_rpc("headrace_commit"), "the switch of weights")
        await self._label(version)
        self._version = version
        if mode == "keep_kv":
            return
        reset = self._llm.engine_core.reset_prefix_cache_async(mode == "recompute")
        if not await self._call(reset, "the reset of caches"):
            raise EngineFailure("vLLM kept caches of older weights")

    @asynccontextmanager
    async def _paused(self, drain: bool) -> AsyncIterator[float]:
        """No step is scheduled or in flight inside; yields when the pause began (monotonic seconds).

        vLLM's `pause_generation` does the same and then sleeps 20 ms, several times the rest of an update of a small
        model; hence its parts, from the engine client.
        """
        core = self._llm.engine_core
        mode, limit = ("wait", DRAIN_LIMIT) if drain else ("keep", CALL_LIMIT)
        try:
            await self._call(core.pause_scheduler_async(mode=mode, clear_cache=False), f"a pause ({mode})", limit)
            with self._clock.paused():
                yield time.monotonic()
                await self._call(core.resume_scheduler_async(), "the end of a pause")
        except BaseException:
            # Cancelled or failed on the way: an engine left paused would hang every request. A dead one is past help.
            if self._ended is not None and not self._ended.done():
                await asyncio.shield(self._call(core.resume_scheduler_async(), "the end of a pause"))
            raise

    async def _label(self, version: int) -> None:
        await self._call(self._llm.update_weight_version(str(version)), "the change of the version label")

    # --- life -------------------------------------------------------------------------------------------------

    async def _call(
        self, work: Coroutine[Any, Any, Result], waiting_for: str, limit: float | None = CALL_LIMIT
    ) -> Result:
        """`work`'s result, or `EngineFailure` as soon as the engine ended, or `TimedOut` after `limit` seconds.

        Only a request has no limit: how long it queues is the caller's choice, and the watch ends it with the engine.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._ended is not None
        task = asyncio.ensure_future(work)
        try:
            either: set[asyncio.Future[Any]] = {task, self._ended}
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._ended.done():
                raise EngineFailure(self._ended.result())
            raise TimedOut(f"vLLM: no answer to {waiting_for} within {limit:.0f} s")
        except EngineDeadError as error:
            self._end("vLLM's engine process died; its log names the cause")
            raise EngineFailure(self._ended.result()) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _end(self, reason: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    async def _watch(self) -> None:
        # vLLM sets a flag from a thread of its own and tells nobody who waits on a call rather than on a request.
        while not self._llm.errored:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_INTERVAL)
        self._end("vLLM's engine process died; its log names the cause")


async def _bring_up(config: EngineConfig) -> Any:
    """A started AsyncLLM; raises TimeoutError after `start_timeout`, having ended the processes of the attempt."""
    before = set(vllm_start.engine_processes())
    attempt = asyncio.create_task(asyncio.to_thread(vllm_start.start_engine, config))
    done, _ = await asyncio.wait({attempt}, timeout=config.start_timeout)
    if done:
        return attempt.result()
    for process in set(vllm_start.engine_processes()) - before:
        process.kill()
    # With its process gone the attempt fails, or it was still reading configuration files and ends here by itself.
    await asyncio.wait({attempt}, timeout=CALL_LIMIT)
    if attempt.done() and attempt.exception() is None:
        await asyncio.to_thread(attempt.result().shutdown)
    raise TimeoutError(f"not ready within {config.start_timeout:.0f} s")


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """`work`'s result; where the caller is cancelled meanwhile, `work` still runs to its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _per_token(spans: Any, length: int) -> npt.NDArray[np.int32]:
    """vLLM's spans (version, start, end) over output positions, as one version a token ([length])."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in spans:
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise EngineFailure(f"vLLM left tokens without a version: {spans}")
    return versions


def _prompt_scores(flat: Any, tokens: npt.NDArray[np.int32], start: int, temperature: float) -> npt.NDArray[np.float32]:
    """Log-probabilities of tokens[start:] from vLLM's, which are untempered: log p_T ∝ log p / T, normalised anew."""
    if temperature == 1.0:
        return np.asarray(flat.logprobs[start - 1 :], dtype=np.float32)
    scores = np.empty(len(tokens) - start, dtype=np.float32)
    for row, position in enumerate(range(start, len(tokens))):
        entries = slice(flat.start_indices[position], flat.end_indices[position])
        tempered = np.asarray(flat.logprobs[entries], dtype=np.float64) / temperature
        top = tempered.max()
        own = flat.token_ids[entries].index(int(tokens[position]))
        # vLLM lists the prompt's own token first and again among the vocabulary.
        vocabulary = tempered[1:]
        scores[row] = tempered[own] - top - np.log(np.exp(vocabulary - top).sum())
    return scores
