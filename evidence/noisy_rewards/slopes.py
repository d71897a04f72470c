"""How much of the clean gradient is left under noise, by the real graders and the real advantage functions.

One set of completions of the base model, graded again and again: the slope of a noise is the noisy gradient's length
along the clean one, over the clean one's own. With A_i the advantage of completion i and h_i = ⟨∇ log π(y_i), d⟩, d the
clean gradient as the real trainer computes it,

    slope = Σ A_i(noisy) h_i / Σ A_i(clean) h_i        over the mean of many draws of the noise

because loss and its scale are the same but for A. h_i are central differences of the log-probabilities along d, two
forward passes in all, so that draws of the noise cost their grading alone.

PPO divides its advantages by the batch's deviation, which flips change: its slope is that of the advantages times that
deviation, that is of reward minus the batch's mean (λ = γ = 1, and a critic that knows nothing yet).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_lab.training.graded_training import RIGHT, GradedRun
from headrace_learner.algorithms.advantages import AdvantageInputs, Column
from headrace_learner.algorithms.batch import StepBatch, build_step_batch
from headrace_learner.algorithms.presets import algorithm

GROUPS, GROUP_SIZE, DRAWS = 512, 4, 24
ADVANTAGES = ("dr_grpo", "grpo", "ppo")
UNMOVED = 1e-30
"""A learning rate so small that no weight changes: below the resolution of float32."""
REACH = 0.02
"""Largest change of a weight in the central difference, in units of the standard deviation of the weights."""
ESTIMATOR: dict[str, Any] = {
    **{"algorithm": "dr_grpo", "batch_size": GROUPS, "group_size": GROUP_SIZE, "learning_rate": UNMOVED},
    **{"max_grad_norm": 1e9, "max_tokens": 48, "max_context": 64},
}


def noisy(flip: Any, seed: int, **changes: Any) -> dict[str, Any]:
    """A grader for the right answer whose rewards are flipped."""
    return {"type": "noisy", "name": "noisy", "grader": RIGHT, "flip": flip, "seed": seed, **changes}


def debiased(flip: Any, seed: int) -> dict[str, Any]:
    """The same grader, with a correction for its flips (`debias`)."""
    return {"type": "debias", "name": "debiased", "grader": noisy(flip, seed), "flip": flip}


class Slopes:
    """The completions, and the derivative of each token's log-probability along the clean gradient."""

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        self.settings = Hyperparameters.model_validate({**ESTIMATOR, "seed": seed})
        self.run = GradedRun(self.settings, RIGHT)
        self.clean = self.run.groups()
        self.carried_N = self._carried()

    def of(self, graders: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Slope by advantage function, averaged over `graders`, which are draws of the same noise."""
        clean = self._along(self.clean)
        noisy = [self._along(self.regraded(grader)) for grader in graders]
        return {name: float(np.mean([along[name] for along in noisy])) / clean[name] for name in ADVANTAGES}

    def regraded(self, grader: dict[str, Any]) -> list[Group]:
        """The same completions with the rewards of another grader."""
        self.run.grade_by(grader)
        return self.run.graded(self.clean)

    def _along(self, groups: Sequence[Group]) -> dict[str, float]:
        batch = self._batch(groups)
        return {name: float(_advantages(name, batch) @ self.carried_N) for name in ADVANTAGES}

    def _batch(self, groups: Sequence[Group]) -> StepBatch:
        """A batch laid out as for PPO: groups of equal rewards are included, since noise may change their rewards."""
        return build_step_batch(groups, 0, self.settings.model_copy(update={"algorithm": "ppo"}))

    def _carried(self) -> Column:
        """[N] derivative of each token's log-probability along the descent of the clean loss."""
        trainer = self.run.trainer
        trainer.step(self.clean, version=0)
        parameters = list(trainer.policy.model.parameters())
        direction = [torch.zeros_like(p) if p.grad is None else -p.grad.detach().clone() for p in parameters]
        largest = max(float(d.abs().max()) for d in direction)
        spread = float(torch.cat([p.detach().flatten() for p in parameters]).std())
        reach = REACH * spread / largest
        ahead, behind = self._logprobs(direction, reach), self._logprobs(direction, -reach)
        return (ahead - behind) / (2 * reach)

    @torch.no_grad()
    def _logprobs(self, direction: Sequence[torch.Tensor], reach: float) -> Column:
        """[N] log-probabilities with the weights moved by `reach` along `direction`; the weights are restored."""
        policy, batch = self.run.trainer.policy, self._batch(self.clean)
        before = [p.detach().clone() for p in policy.model.parameters()]
        for p, d in zip(policy.model.parameters(), direction, strict=True):
            p.add_(d, alpha=reach)
        found = np.empty(len(batch.table))
        for micro in (micro for minibatch in batch.minibatches for micro in minibatch.micro_batches):
            found[micro.table_N.numpy()] = policy.logprobs(micro, self.settings.temperature).double().numpy()
        for p, kept in zip(policy.model.parameters(), before, strict=True):
            p.copy_(kept)
        return found


def _advantages(name: str, batch: StepBatch) -> Column:
    """[N] advantages of the step's tokens; PPO's before the division by the batch's standard deviation."""
    chosen, nothing_N = algorithm(name), np.zeros(len(batch.table))
    earned = AdvantageInputs(batch.trajectories, nothing_N, nothing_N if chosen.critic else None)
    found = chosen.advantages(earned)
    return found.advantages_N if found.returns_N is None else found.advantages_N * found.returns_N.std()
