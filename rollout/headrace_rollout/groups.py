"""Makes one group: n completions of one prompt, generated together, scored together."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace_core.algorithms import ALGORITHMS
from headrace_core.data import PromptOrder
from headrace_core.hyperparameters import Hyperparameters
from headrace_core.ledger import Lease
from headrace_core.trajectory import Completion, Group, sampled_completion
from headrace_rewards.protocol import Draw, Outcome, Reward

from .concurrency import all_or_none
from .engines.base import Engine, Sampled, SamplingConfig
from .prompts import Prompt, Tokenizer
from .scoring import sample_of, score, value_of


class GroupMaker:
    """Turns leases into groups. The prompt follows from the group's number alone, so any worker may take any lease."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        reward: Reward,
        prompts: list[Prompt],
        settings: Hyperparameters,
        slot_freed: Callable[[], None],
    ) -> None:
        """`slot_freed` is called each time the engine has one request less."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._reward = reward
        self._prompts = prompts
        self._settings = settings
        self._slot_freed = slot_freed
        self._order = PromptOrder(len(prompts), settings.seed)
        self._sampling = SamplingConfig(settings.max_tokens, settings.temperature, settings.top_p)
        self._greedy = SamplingConfig(settings.max_tokens, temperature=0.0)
        self._wants_greedy = ALGORITHMS[settings.algorithm].wants_greedy

    async def make(self, lease: Lease) -> Group:
        """The leased group. Raises `RewardFailed` or the engine's errors."""
        began = time.monotonic()
        prompt = self._prompts[self._order.row(lease.group_id)]
        configs = [self._sampling] * self._settings.group_size + [self._greedy] * self._wants_greedy
        sampled = await all_or_none(self._complete(prompt, config) for config in configs)
        generation_seconds = time.monotonic() - began
        samples = [
            sample_of(s, prompt.data, self._tokenizer, Draw(lease.group_id, number)) for number, s in enumerate(sampled)
        ]
        outcomes = await score(self._reward, samples, self._settings.reward_attempts)
        completions = [_completion(s, o) for s, o in zip(sampled, outcomes, strict=True)]
        return Group(
            group_id=lease.group_id,
            attempt=lease.attempt,
            row=prompt.row,
            admitted_version=lease.version,
            prompt_ids=prompt.token_ids,
            completions=tuple(completions[: self._settings.group_size]),
            greedy=completions[-1] if self._wants_greedy else None,
            generation_seconds=generation_seconds,
            reward_seconds=time.monotonic() - began - generation_seconds,
        )

    async def _complete(self, prompt: Prompt, sampling: SamplingConfig) -> Sampled:
        try:
            return await self._engine.generate(prompt.token_ids, sampling)
        finally:
            self._slot_freed()


def _completion(sampled: Sampled, outcome: Outcome) -> Completion:
    reward, components = value_of(outcome)
    return sampled_completion(
        sampled.token_ids, sampled.logprobs, sampled.versions, sampled.finish_reason, reward, components
    )
