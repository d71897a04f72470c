"""Evaluation on held-out prompts, by the engine that trains: greedy completions between those for training."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from headrace_core.errors import InvalidRequest
from headrace_core.metrics import EvaluationMetrics
from headrace_rewards.protocol import Failure, Reward, Score

from .concurrency import all_or_none
from .engines.base import SamplingConfig
from .measuring import Measurer, Traced
from .prompts import Prompt, Tokenizer
from .scoring import sample_of, score


async def evaluate(
    measurer: Measurer,
    tokenizer: Tokenizer,
    reward: Reward,
    prompts: list[Prompt],
    *,
    max_tokens: int,
    step: int,
    at_once: int,
) -> EvaluationMetrics:
    """Score greedy completions of `prompts`, at most `at_once` in flight."""
    if not prompts:
        raise InvalidRequest("this job has no validation file to evaluate on", param="validation_file")
    began = time.monotonic()
    slots = asyncio.Semaphore(at_once)
    greedy = SamplingConfig(max_tokens, temperature=0.0)

    async def complete(prompt: Prompt) -> Traced:
        async with slots:
            (traced,) = await measurer.complete(prompt, [greedy])
            return traced

    traced = await all_or_none(complete(prompt) for prompt in prompts)
    samples = [sample_of(t, p.data, tokenizer) for t, p in zip(traced, prompts, strict=True)]
    outcomes = await score(reward, samples, attempts=2)
    scores = [o for o in outcomes if isinstance(o, Score)]
    names = sorted({name for s in scores for name in s.components})
    versions = np.concatenate([t.sampled.versions for t in traced])
    return EvaluationMetrics(
        step=step,
        time=time.time(),
        seconds=time.monotonic() - began,
        samples=len(prompts),
        reward_mean=_mean([s.value for s in scores]),
        components={n: _mean([s.components[n] for s in scores if n in s.components]) for n in names},
        reward_failed=sum(isinstance(o, Failure) for o in outcomes),
        versions=(int(versions.min()), int(versions.max())),
        completion_length=len(versions) / len(prompts),
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
