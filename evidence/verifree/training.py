"""The careless adder trained by VeriFree, by its verifier, and by VeriFree without the leave-one-out baseline.

Groups are made by the service's own `GroupBuilder`: it cuts completions where the answer opens, has the reference
answer scored by the policy that sampled, and asks the graders `verifree` and `string_check`, built from the JSON that a
user writes. The arms differ in that JSON and in the baseline; prompts, sampling, learning rate and loss are the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.ledger.records import Lease
from headrace_core.types.trajectory import Group
from headrace_lab.training.lagged_training import ADDER
from headrace_lab.training.step_engine import TurnEngine
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer
from headrace_rewards.registry import build, validate
from headrace_rollout.engines.engine import SamplingConfig
from headrace_rollout.group_builder import GroupBuilder
from headrace_rollout.monitored_reward import MonitoredReward
from headrace_rollout.prompts import Tokenizer, read_prompts

EVALUATE_EVERY = 2
SETTINGS: dict[str, Any] = {
    **{"algorithm": "rloo", "batch_size": 16, "group_size": 8, "learning_rate": 1.5e-4},
    **{"max_tokens": 40, "max_context": 64, "max_staleness": 0, "reward_recheck": 0.0},
}
VERIFIER = {
    "type": "string_check",
    "name": "verifier",
    "input": "{{ sample.output_text }}",
    "reference": "<answer> {{ item.answer }} </answer>",
    "operation": "like",
}
VERIFREE = {"type": "verifree", "name": "likelihood"}
NO_BASELINE = {"algorithm": "remax", "kl_coefficient": 0.0, "advantage_clip": None}
"""Settings of ReMax, which is given a greedy reward of 0 for every group, so that A = R."""
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "verifree": (VERIFREE, {}),
    "verifier": (VERIFIER, {}),
    "no_baseline": (VERIFREE, NO_BASELINE),
}
"""(grader, hyperparameters)"""


class Run:
    """Training of one arm in synchronous steps, in one thread."""

    def __init__(self, arm: str, seed: int, model: Path) -> None:
        grader, own = ARMS[arm]
        # Groups are sampled alike in all arms: no greedy completions; `without_baseline` sets their reward for `remax`.
        self._settings = Hyperparameters.model_validate({**SETTINGS, "seed": seed})
        learning = Hyperparameters.model_validate({**SETTINGS, **own, "seed": seed})
        self.trainer = Trainer(Policy(model, learning), algorithm(learning.algorithm), learning)
        self.version = 0
        self._baseline = not own
        self._tokenizer = Tokenizer(model)
        longest = self._settings.max_context - self._settings.max_tokens
        self._held_out = read_prompts(ADDER / "validation.jsonl", self._tokenizer, longest)
        self._engine = TurnEngine(model, self._settings)
        spec = validate(grader)
        self._maker = GroupBuilder(
            cast(Any, self._engine),
            self._tokenizer,
            MonitoredReward(build(grader), spec, "evidence", self._settings),
            read_prompts(ADDER / "train.jsonl", self._tokenizer, longest),
            self._settings,
            lambda: None,
            spec,
        )

    def step(self) -> float:
        """Sample a batch and update the policy with it; returns the batch's mean reward."""
        size = self._settings.batch_size
        groups = self.groups(self.version * size, size)
        self.trainer.step(groups, self.version)
        self.version += 1
        rewards = [c.reward for g in groups for c in g.completions if c.reward is not None]
        return sum(rewards) / len(rewards)

    def groups(self, first: int, count: int) -> list[Group]:
        """Groups `first` … `first + count − 1`, sampled with the newest weights."""
        self._engine.use(self.trainer.policy.model.state_dict(), self.version)
        leases = [Lease(number, "", 1, self.version) for number in range(first, first + count)]

        async def made() -> list[Group]:
            return await asyncio.gather(*(self._maker.make(lease, self._settings.group_size) for lease in leases))

        groups = self._engine.drive(made())
        return groups if self._baseline else [without_baseline(group) for group in groups]

    def accuracy(self) -> float:
        """Fraction of held-out problems whose complete greedy completions give the right answer."""
        self._engine.use(self.trainer.policy.model.state_dict(), self.version)
        greedy = SamplingConfig(self._settings.max_tokens, temperature=0.0)
        sampled = self._engine.sample([(prompt, greedy) for prompt in self._held_out])
        right = [
            f"<answer> {prompt.data.item['answer']} </answer>" in self._tokenizer.text(s.token_ids)
            for s, prompt in zip(sampled, self._held_out, strict=True)
        ]
        return sum(right) / len(right)


def train(arm: str, seed: int, model: Path, target: float, steps: int) -> dict[str, Any]:
    """Held-out accuracies every `EVALUATE_EVERY` steps, until one is at least `target`, or for `steps` steps."""
    torch.set_num_threads(1)
    run = Run(arm, seed, model)
    accuracies, rewards = {0: run.accuracy()}, []
    for step in range(1, steps + 1):
        rewards.append(run.step())
        if step % EVALUATE_EVERY == 0:
            accuracies[step] = run.accuracy()
            if accuracies[step] >= target:
                break
    return {
        "arm": arm,
        "seed": seed,
        "steps": list(accuracies),
        "accuracies": list(accuracies.values()),
        "rewards": rewards,
        "reached": step if accuracies[step] >= target else None,
    }


def without_baseline(group: Group) -> Group:
    """The group with a reward of 0 for the greedy completion, which `remax` uses as its baseline."""
    return replace(group, greedy=replace(group.completions[0], reward=0.0))
