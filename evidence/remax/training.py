"""The adder trained by REINFORCE, ReMax and PPO: as many completions each, the same prompts, with and without offsets.

One completion a prompt, the reference divergence of ReMax's preset (0.05, in the reward) for all three. PPO is the
preset: four minibatches a step, a critic that starts from the policy's weights. Learning rates are those that did best
in short trials without offsets, one for each algorithm.
"""

from __future__ import annotations

from typing import Any

import torch

from evidence.remax.rewards import Baseline, Rewards, greedy_baseline, no_baseline, rewarded
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_lab.training.lagged_training import LaggedRun, adder

STEPS, BATCH, EVALUATE_EVERY = 32, 128, 4
COMMON: dict[str, Any] = {"batch_size": BATCH, "group_size": 1, "max_tokens": 64, "max_context": 128}
COMMON |= {"kl_coefficient": 0.05}
LEARNERS: dict[str, dict[str, Any]] = {
    "reinforce": {"algorithm": "remax", "advantage_clip": None, "learning_rate": 3e-4},
    "remax": {"algorithm": "remax", "learning_rate": 3e-4},
    "ppo": {"algorithm": "ppo", "learning_rate": 1.5e-4, "critic_learning_rate": 1e-3},
}
"""`reinforce` is ReMax with a baseline of 0, and without clamping of rewards."""


class RewardedRun(LaggedRun):
    """Trains on the task's rewards plus offsets; evaluates with the task's rewards alone."""

    def __init__(self, settings: Hyperparameters, rewards: Rewards, baseline: Baseline) -> None:
        super().__init__(adder(), settings)
        self._rewards = rewards
        self._baseline = baseline

    def groups(self) -> list[Group]:
        """The next groups, with offsets added and the rewards of the greedy completions replaced by the baseline."""
        return [rewarded(g, self._rewards, self._baseline, self._settings.seed) for g in super().groups()]


def train(learner: str, offset: float, seed: int) -> dict[str, Any]:
    """The held-out greedy rewards of one run, every `EVALUATE_EVERY` steps."""
    torch.set_num_threads(1)
    settings = Hyperparameters.model_validate({**COMMON, **LEARNERS[learner], "seed": seed})
    run = RewardedRun(settings, Rewards("task", offset), no_baseline if learner == "reinforce" else greedy_baseline)
    rewards = {0: run.accuracy()}
    for step in range(1, STEPS + 1):
        run.step()
        if step % EVALUATE_EVERY == 0:
            rewards[step] = run.accuracy()
    return {"learner": learner, "offset": offset, "seed": seed, "steps": list(rewards), "rewards": [*rewards.values()]}
