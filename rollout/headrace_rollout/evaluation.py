"""Evaluation on held-out prompts, by the engine that trains: greedy completions between those for training."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from statistics import fmean

import numpy as np

from headrace_core.errors import InvalidRequest
from headrace_core.metrics import EvaluationMetrics
from headrace_rewards.protocol import Failure, Reward, Score

from .concurrency import all_or_none
from .engines.base import RequestRefused, SamplingConfig
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
) -> tuple[EvaluationMetrics, list[Failure]]:
    """Score greedy completions of `prompts`, at most `at_once` in flight; beside the figures, what failed."""
    if not prompts:
        raise InvalidRequest("this job has no validation file to evaluate on", param="validation_file")
    began = time.monotonic()
    slots = asyncio.Semaphore(at_once)
    greedy = SamplingConfig(max_tokens, temperature=0.0)

    async def complete(prompt: Prompt) -> Traced | None:
        async with slots:
            try:
                (traced,) = await measurer.complete(prompt, [greedy])
            except RequestRefused:  # the row's fault: another worker would refuse it, too
                return None
            return traced

    done = zip(prompts, await all_or_none(complete(prompt) for prompt in prompts), strict=True)
    traced = [(prompt, t) for prompt, t in done if t is not None]
    samples = [sample_of(t, prompt.data, tokenizer) for prompt, t in traced]
    outcomes = await score(reward, samples, attempts=2)
    scores = [o for o in outcomes if isinstance(o, Score)]
    failures = [o for o in outcomes if isinstance(o, Failure)]
    names = sorted({name for s in scores for name in s.components})
    versions = np.concatenate([t.sampled.versions for _, t in traced] or [np.array([step])])
    measured = EvaluationMetrics(
        step=step,
        time=time.time(),
        seconds=time.monotonic() - began,
        samples=len(prompts),
        reward_mean=fmean(s.value for s in scores) if scores else None,
        components={n: fmean(s.components[n] for s in scores if n in s.components) for n in names},
        reward_failed=len(failures),
        failures=dict(Counter(f.kind for f in failures)),
        not_applicable=len(outcomes) - len(scores) - len(failures),
        sample_parse_errors=sum(bool(s.sample_fault) for s in scores),
        generation_failed=len(prompts) - len(traced),
        versions=(int(versions.min()), int(versions.max())),
        completion_length=sum(len(t.sampled.versions) for _, t in traced) / max(len(traced), 1),
    )
    return measured, failures
