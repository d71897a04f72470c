"""A deterministic engine: the decoder of the `transformers` engine in the caller's thread.

    GroupBuilder ── generate, score ──► queue ──► drive: decode step after decode step, then all scorings in one pass

The samples depend only on the seed and the order of the calls. With a decode thread, requests would arrive at different
steps in different runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from headrace_rollout.engines.engine import Sampled, SamplingConfig, Scored
from headrace_rollout.engines.transformers.batch_slots import Generation

from .lagged_training import Sampler

T = TypeVar("T")
SETTLING = 8
"""Iterations of the event loop after which all tasks have submitted every request that they can."""


@dataclass(frozen=True, slots=True)
class _Scoring:
    tokens: npt.NDArray[np.int32]
    start: int
    temperature: float
    future: asyncio.Future[Scored]


class TurnEngine(Sampler):
    """Has the methods `generate` and `score` of an `Engine`; they make progress while `drive` runs."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._scorings: list[_Scoring] = []

    async def generate(self, prompt: npt.NDArray[np.int32], sampling: SamplingConfig) -> Sampled:
        """One completion of `prompt`."""
        request = Generation(np.ascontiguousarray(prompt, np.int32), sampling)
        self._decoder.accept(request)
        return await asyncio.wrap_future(request.future)

    async def score(self, tokens: npt.NDArray[np.int32], start: int, temperature: float = 1.0) -> Scored:
        """Log-probabilities of tokens[start:], see `Engine.score`."""
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._scorings.append(_Scoring(np.ascontiguousarray(tokens, np.int32), start, temperature, future))
        return await future

    @torch.inference_mode()
    def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and all of its requests; returns its result."""
        return asyncio.run(self._drive(work))

    async def _drive(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        while not task.done():
            for _ in range(SETTLING):
                await asyncio.sleep(0)
            if self._decoder.running or self._decoder.waiting:
                self._decoder.admit()
                self._decoder.step()
            elif self._scorings:
                scorings, self._scorings = self._scorings, []
                scores = self._policy.score([(s.tokens, s.start, s.temperature) for s in scorings])
                for scoring, logprobs in zip(scorings, scores, strict=True):
                    scoring.future.set_result(Scored(logprobs, self._decoder.version))
        return task.result()
