"""Evaluation on held-out prompts, by the engine that trains: greedy completions between those for training.

    hold the engine's version ──► completions, at most `at_once` in flight ──► let go ──► rewards

Invariant: every token of an evaluation, and every score of a reference answer, is of the one policy version that it is
reported under.
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
    """Evaluates with one worker's engine; `weight_sync` is what changes its weights, and holds them meanwhile."""

    def __init__(
        self,
        weight_sync: WeightSync,
        measurer: CompletionSampler,
        tokenizer: Tokenizer,
        reward: Reward,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        at_once: int,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.progress: tuple[int, int] | None = None
        """(policy version, completions so far) of the last evaluation that was begun."""
        self._weight_sync, self._clock = weight_sync, clock
        self._measurer = measurer
        self._tokenizer = tokenizer
        self._reward = reward
        self._prompts = prompts
        self._slots = asyncio.Semaphore(at_once)
        self._greedy = SamplingConfig(max_tokens, temperature=0.0)

    async def evaluate(self, version: int, limit: float) -> tuple[EvaluationMetrics, list[Failure]]:
        """Score a greedy completion of each prompt; beside the figures, what failed.

        By `version`, or the newer one that the engine has when nothing is being applied to it any more; raises
        `TimedOut` where that takes more than `limit` seconds.
        """
        if not self._prompts:
            raise InvalidRequest("this job has no validation file to evaluate on", param="validation_file")
        began = self._clock.monotonic()
        async with self._weight_sync.held(version, limit) as held:
            self.progress = (held, 0)
            done = await all_or_none(self._complete(prompt, held) for prompt in self._prompts)
        traced = [(prompt, t) for prompt, t in zip(self._prompts, done, strict=True) if t is not None]
        outcomes = await all_or_none(self._score(sample_of(t, p.data, self._tokenizer)) for p, t in traced)
        measured = EvaluationMetrics(
            step=held,
            time=self._clock.time(),
            seconds=self._clock.monotonic() - began,
            samples=len(self._prompts),
            generation_failed=len(self._prompts) - len(traced),
            completion_length=fmean([len(t.sampled.token_ids) for _, t in traced] or [0.0]),
            **_figures(outcomes),
        )
        return measured, [o for o in outcomes if isinstance(o, Failure)]

    async def _score(self, sample: Sample) -> Outcome:
        """By itself: a call of a reward is for the completions of one prompt, and has the time for so many."""
        async with self._slots:
            (outcome,) = await score(self._reward, [sample], attempts=2)
        return outcome

    async def _complete(self, prompt: Prompt, held: int) -> SampledCompletion | None:
        """`None` where the engine refuses the row: another worker would, too."""
        async with self._slots:
            try:
                (traced,) = await self._measurer.complete(prompt, [self._greedy])
            except RequestRefused:
                return None
        if versions := set(traced.versions) - {held}:
            raise EngineFailure(
                f"an evaluation of version {held} has tokens of {versions}: the engine changed beside it"
            )
        if self.progress is not None and self.progress[0] == held:
            self.progress = (held, self.progress[1] + 1)
        return traced


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `EvaluationMetrics` says of the rewards."""
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
