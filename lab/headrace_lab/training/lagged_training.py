"""Training on data of a chosen age, without services: the real trainer, and a sampler with older weights.

    weights of version max(0, v − lag) ──► Sampler ──► groups ──► Trainer.step(groups, v) ──► weights of v + 1
          ▲                                                                                         │
          └────────────────── the newest lag + 1 versions are retained ◄────────────────────────────┘

Invariants: all tokens of a step are sampled by one version, exactly `lag` older than the one updated (version 0 during
the first `lag` steps), and have the log-probabilities of the distribution they were sampled from. Everything is
deterministic in the settings' seed, because one thread does everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.storage.dataset import PromptOrder
from headrace_core.types.trajectory import Completion, Group, sampled_completion
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import StepResult, Trainer
from headrace_rollout.engines.engine import EngineConfig, Sampled, SamplingConfig
from headrace_rollout.engines.transformers.batch_slots import Generation
from headrace_rollout.engines.transformers.decoder import Decoder
from headrace_rollout.engines.transformers.policy_model import PolicyModel
from headrace_rollout.prompts import Prompt, Tokenizer, read_prompts

from ..paths import ADDER, load_module

Grade = Callable[[dict[str, Any], dict[str, Any]], float]
"""`grade(sample, item)` → reward, as OpenAI's Python graders have it."""
Weights = dict[str, torch.Tensor]
AT_ONCE = 512
"""Completions decoded in one batch; beyond a few hundred, a larger batch is no faster."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model folder, training and validation rows, and the reward."""

    model: Path
    training_file: Path
    validation_file: Path
    grade: Grade


def adder() -> Task:
    """The demo's task: two-digit additions in words, with a reward for right answers."""
    return Task(
        ADDER / "model", ADDER / "train.jsonl", ADDER / "validation.jsonl", load_module(ADDER / "reward.py").correct
    )


class Sampler:
    """The decoder of the `transformers` engine, run in the caller's thread."""

    def __init__(self, model: Path, settings: Hyperparameters) -> None:
        config = EngineConfig(
            model, max_model_len=settings.max_context, max_running=AT_ONCE, seed=settings.seed, dtype="float32"
        )
        self._policy = PolicyModel(config)
        self._decoder = Decoder(self._policy, config)

    def use(self, weights: Weights, version: int) -> None:
        """Sample with these weights, of policy `version`, from now on."""
        self._policy.model.load_state_dict(weights)
        self._decoder.version = version

    @torch.inference_mode()
    def sample(self, jobs: Sequence[tuple[Prompt, SamplingConfig]]) -> list[Sampled]:
        """One completion for each (prompt, config), in the same order."""
        requests = [Generation(prompt.token_ids, sampling) for prompt, sampling in jobs]
        for request in requests:
            self._decoder.accept(request)
        while self._decoder.running or self._decoder.waiting:
            self._decoder.admit()
            self._decoder.step()
        return [request.future.result(timeout=0) for request in requests]


class LaggedRun:
    """A job in one thread. `step` trains on data that is `lag` versions old; `accuracy` evaluates the newest
    version."""

    def __init__(self, task: Task, settings: Hyperparameters, lag: int | None = 0) -> None:
        """`lag` None: the sampler stays at version 0. Raises ValueError for a lag beyond max_staleness."""
        if lag is not None and lag > settings.max_staleness:
            raise ValueError(f"data {lag} versions old would be masked: raise max_staleness {settings.max_staleness}")
        self.version = 0
        self.trainer = Trainer(Policy(task.model), algorithm(settings.algorithm), settings)
        self._settings = settings
        self._grade = task.grade
        self._lag = lag
        self._tokenizer = Tokenizer(task.model)
        longest = settings.max_context - settings.max_tokens
        self._prompts = read_prompts(task.training_file, self._tokenizer, longest)
        self._held_out = read_prompts(task.validation_file, self._tokenizer, longest)
        self._order = PromptOrder(len(self._prompts), settings.seed)
        self._sampler = Sampler(task.model, settings)
        self._retained = deque([self._weights()], maxlen=None if lag is None else lag + 1)

    @property
    def behaviour_version(self) -> int:
        """The version that samples the next step's data."""
        return 0 if self._lag is None else max(0, self.version - self._lag)

    def step(self) -> tuple[list[Group], StepResult]:
        """Sample a batch and update the policy on it. Returns (groups trained on, the trainer's result)."""
        groups = self.groups()
        result = self.trainer.step(groups, self.version)
        self.version += 1
        if self._lag is not None:
            self._retained.append(self._weights())
        return groups, result

    def groups(self) -> list[Group]:
        """`batch_size` groups for the next step, sampled by the behaviour policy and scored."""
        s = self._settings
        wants_greedy = ALGORITHMS[s.algorithm].wants_greedy
        sampling = SamplingConfig(s.max_tokens, s.temperature)
        configs = [sampling] * s.group_size + [SamplingConfig(s.max_tokens, temperature=0.0)] * wants_greedy
        numbers = range(self.version * s.batch_size, (self.version + 1) * s.batch_size)
        prompts = [self._prompts[self._order.row(number)] for number in numbers]
        self._sampler.use(self._retained[0], self.behaviour_version)
        sampled = iter(self._sampler.sample([(prompt, config) for prompt in prompts for config in configs]))
        groups = []
        for number, prompt in zip(numbers, prompts, strict=True):
            completions = tuple(self._scored(next(sampled), prompt) for _ in configs)
            groups.append(
                Group(
                    group_id=number,
                    attempt=1,
                    row=prompt.row,
                    admitted_version=self.behaviour_version,
                    prompt_ids=prompt.token_ids,
                    completions=completions[: s.group_size],
                    greedy=completions[-1] if wants_greedy else None,
                )
            )
        return groups

    def accuracy(self) -> float:
        """Mean reward of greedy completions of the validation rows, by the newest weights."""
        greedy = SamplingConfig(self._settings.max_tokens, temperature=0.0)
        self._sampler.use(self._weights(), self.version)
        sampled = self._sampler.sample([(prompt, greedy) for prompt in self._held_out])
        return float(np.mean([self._reward(s, p) for s, p in zip(sampled, self._held_out, strict=True)]))

    def _scored(self, sampled: Sampled, prompt: Prompt) -> Completion:
        return sampled_completion(
            sampled.token_ids,
            sampled.logprobs,
            sampled.versions,
            sampled.finish_reason,
            self._reward(sampled, prompt),
        )

    def _reward(self, sampled: Sampled, prompt: Prompt) -> float:
        return self._grade({"output_text": self._tokenizer.text(sampled.token_ids)}, prompt.data.item)

    def _weights(self) -> Weights:
        """A copy of the policy's present weights."""
        return {name: tensor.detach().clone() for name, tensor in self.trainer.policy.model.state_dict().items()}
