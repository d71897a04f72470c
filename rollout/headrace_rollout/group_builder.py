"""Builds a group: n completions of one prompt, generated concurrently and scored together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.ledger.records import Lease
from headrace_core.protocols.grader_check import Outcome, Score
from headrace_core.storage.dataset import PromptOrder
from headrace_core.types.likelihood import Likelihood
from headrace_core.types.trajectory import F32, I32, U8, Completion, Group, Role, sampled_completion
from headrace_rewards.graders.spec import GraderSpec
from headrace_rewards.protocol import Progress, SampleKey

from .completion_sampler import CompletionSampler, ReferenceScore, SampledCompletion
from .engines.engine import Engine, SamplingConfig
from .monitored_reward import MonitoredReward
from .prompts import Prompt, Tokenizer
from .reward_scoring import sample_of, value_of


class GroupBuilder:
    """Turns leases into groups. The group's number determines the prompt, so that any worker can take any lease."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        reward: MonitoredReward,
        prompts: list[Prompt],
        settings: Hyperparameters,
        slot_freed: Callable[[], None],
        grader: GraderSpec,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`grader` is the description of `reward`. `slot_freed` is called whenever a request of the engine has ended.

        Raises `InvalidRequest` or `InvalidData` if the grader needs measurements that are not possible.
        """
        self.unstable_boundaries = 0
        """Number of completions whose reference answer begins where the tokenizer would not split the text."""
        self._sampler = CompletionSampler(engine, tokenizer, grader, settings, prompts, slot_freed=slot_freed)
        self._tokenizer, self._clock = tokenizer, clock
        self._reward = reward
        self._prompts = prompts
        self._settings = settings
        self._total_steps = settings.steps(len(prompts))
        self._steps_per_epoch = len(prompts) / settings.batch_size
        self._order = PromptOrder(len(prompts), settings.seed)
        self._sampling = SamplingConfig(settings.max_tokens, settings.temperature)
        self._greedy = SamplingConfig(settings.max_tokens, temperature=0.0)
        self._wants_greedy = ALGORITHMS[settings.algorithm].wants_greedy

    @property
    def tightest(self) -> tuple[int, Prompt] | None:
        """See `CompletionSampler`."""
        return self._sampler.tightest

    def prompt(self, lease: Lease) -> Prompt:
        """The prompt of the leased group."""
        return self._prompts[self._order.row(lease.group_id)]

    async def make(self, lease: Lease, group_size: int) -> Group:
        """Generate and score the leased group with `group_size` completions. Raises `RewardFailed` or the engine's
        errors."""
        began = self._clock.monotonic()
        prompt = self.prompt(lease)
        configs = [self._sampling] * group_size + [self._greedy] * self._wants_greedy
        sampled = await self._sampler.complete(prompt, configs)
        self.unstable_boundaries += sum(s.unstable is True for s in sampled)
        generation_seconds = self._clock.monotonic() - began
        keys = [SampleKey(lease.group_id, number, greedy=number == group_size) for number in range(len(sampled))]
        progress = Progress(lease.version, self._total_steps, self._steps_per_epoch)
        samples = [
            sample_of(s, prompt.data, self._tokenizer, key, progress) for s, key in zip(sampled, keys, strict=True)
        ]
        outcomes = await self._reward.score(samples)
        completions = [_completion(s, o) for s, o in zip(sampled, outcomes, strict=True)]
        return Group(
            group_id=lease.group_id,
            attempt=lease.attempt,
            row=prompt.row,
            admitted_version=lease.version,
            prompt_ids=prompt.token_ids,
            completions=tuple(completions[:group_size]),
            greedy=completions[-1] if self._wants_greedy else None,
            generation_seconds=generation_seconds,
            reward_seconds=self._clock.monotonic() - began - generation_seconds,
        )


def _completion(sampled: SampledCompletion, outcome: Outcome) -> Completion:
    reward, components = value_of(outcome)
    if sampled.unstable is not None:
        components = {**components, "unstable_boundary": float(sampled.unstable)}
    s = sampled.sampled
    completion = sampled_completion(s.token_ids, s.logprobs, s.versions, s.finish_reason, reward, components)
    if not isinstance(outcome, Score):
        return completion
    completion, likelihood = replace(completion, notes=outcome.notes), outcome.likelihood
    if sampled.reference is None or likelihood is None or likelihood.coefficient == 0:
        return completion
    return _with_reference(completion, sampled.reference, likelihood)


def _with_reference(completion: Completion, reference: ReferenceScore, likelihood: Likelihood) -> Completion:
    """The completion with the reference answer's tokens appended, with loss weight 1, or 0 if they are not trained.

    The learner applies the weight that follows from the answer's likelihood.
    """
    size, scored = len(reference.token_ids), reference.scored
    return replace(
        completion,
        token_ids=np.concatenate([completion.token_ids, reference.token_ids]).astype(I32),
        logprobs=np.concatenate([completion.logprobs, scored.logprobs]).astype(F32),
        versions=np.concatenate([completion.versions, np.full(size, scored.version, I32)]),
        roles=np.concatenate([completion.roles, np.full(size, Role.REFERENCE, U8)]),
        loss_weights=np.concatenate([completion.loss_weights, np.full(size, likelihood.trains_the_answer, F32)]),
        likelihood=likelihood,
    )
