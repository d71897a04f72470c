"""Evaluation on the validation prompts, by a rollout worker's engine: greedy completions among those for training.

    hold the engine's version ──► completions, at most `at_once` in flight ──► release the version ──► rewards

Invariant: every token of an evaluation, and every score of a reference answer, is of the policy version that the
evaluation is reported for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import all_or_none
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_core.types.metrics import EvaluationMetrics
from headrace_rewards.protocol import Reward, Sample

from .completion_sampler import CompletionSampler, SampledCompletion
from .engines.engine import EngineFailure, RequestRefused, SamplingConfig
from .prompts import Prompt, Tokenizer
from .reward_scoring import sample_of, score
from .weight_sync import WeightSync


class Evaluator:
    """Evaluates with one worker's engine, whose version `weight_sync` holds meanwhile."""

    def __init__(
        self,
        weight_sync: WeightSync,
        sampler: CompletionSampler,
        tokenizer: Tokenizer,
        reward: Reward,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        at_once: int,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.progress: tuple[int, int] | None = None
        """(policy version, completions sampled so far) of the last evaluation that was begun."""
        self._weight_sync, self._clock = weight_sync, clock
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._reward = reward
        self._prompts = prompts
        self._slots = asyncio.Semaphore(at_once)
        self._greedy = SamplingConfig(max_tokens, temperature=0.0)

    async def evaluate(self, version: int, limit: float) -> tuple[EvaluationMetrics, list[Failure]]:
        """Score a greedy completion of each prompt. Returns (figures, failures).

        The completions are of `version`, or of the newer one that the engine has once no update is in progress. Raises
        `TimedOut` if that takes more than `limit` seconds.
        """
        if not self._prompts:
            raise InvalidRequest("this job has no validation file to evaluate on", param="validation_file")
        began = self._clock.monotonic()
        async with self._weight_sync.held(version, limit) as held:
            self.progress = (held, 0)
            done = await all_or_none(self._complete(prompt, held) for prompt in self._prompts)
        sampled = [(prompt, s) for prompt, s in zip(self._prompts, done, strict=True) if s is not None]
        outcomes = await all_or_none(self._score(sample_of(s, p.data, self._tokenizer)) for p, s in sampled)
        metrics = EvaluationMetrics(
            step=held,
            time=self._clock.time(),
            seconds=self._clock.monotonic() - began,
            samples=len(self._prompts),
            generation_failed=len(self._prompts) - len(sampled),
            completion_length=fmean([len(s.sampled.token_ids) for _, s in sampled] or [0.0]),
            **_figures(outcomes),
        )
        return metrics, [o for o in outcomes if isinstance(o, Failure)]

    async def _score(self, sample: Sample) -> Outcome:
        """Score one sample in a call of its own, because a call has the time limit for the completions of one
        prompt."""
        async with self._slots:
            (outcome,) = await score(self._reward, [sample], attempts=2)
        return outcome

    async def _complete(self, prompt: Prompt, held: int) -> SampledCompletion | None:
        """The greedy completion of a prompt; `None` if the engine refuses the row, as any other worker's would."""
        async with self._slots:
            try:
                (sampled,) = await self._sampler.complete(prompt, [self._greedy])
            except RequestRefused:
                return None
        if versions := set(sampled.versions) - {held}:
            raise EngineFailure(
                f"an evaluation of version {held} has tokens of {versions}: the engine's weights changed during it"
            )
        if self.progress is not None and self.progress[0] == held:
            self.progress = (held, self.progress[1] + 1)
        return sampled


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The fields of `EvaluationMetrics` about rewards."""
    scores = [o for o in outcomes if isinstance(o, Score)]
    failures = [o for o in outcomes if isinstance(o, Failure)]
    names = sorted({name for s in scores for name in s.components})
    return {
        "reward_mean": fmean(s.value for s in scores) if scores else None,
        "components": {n: fmean(s.components[n] for s in scores if n in s.components) for n in names},
        "reward_failed": len(failures),
        "failures": dict(Counter(f.kind for f in failures)),
        "not_applicable": len(outcomes) - len(scores) - len(failures),
        "sample_parse_errors": sum(bool(s.sample_fault) for s in scores),
    }
