"""Gradients of ReMax and of plain REINFORCE on the same completions, by the real trainer, under rewards of every kind.

Both are the algorithm `remax`; they differ in the baseline that the trainer is given as the greedy completion's reward.
The policy is the adder's base model: at temperature 1 for the task's own reward, as it is trained; at 1.5 for tables of
random rewards. At 1 it puts nearly all its mass on a few workings, so that few random rewards would decide everything.
No weight moves: the learning rate is below what a float32 resolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evidence.remax.rewards import OFFSET, Baseline, Rewards, greedy_baseline, looking_baseline, no_baseline, rewarded
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_lab.training.gradient_statistics import (
    Matrix,
    gram,
    interval,
    mean_z,
    squared_mean,
    squared_mean_error,
    variance,
)
from headrace_lab.training.lagged_training import LaggedRun, adder
from headrace_learner.training.trainer import Trainer

BATCHES, GROUPS_A_BATCH = 256, 8
UNMOVED = 1e-30
"""A learning rate so small that no weight changes: below the resolution of float32."""
ESTIMATOR: dict[str, Any] = {
    **{"algorithm": "remax", "kl_coefficient": 0.0, "advantage_clip": None, "max_grad_norm": 1e9},
    **{"max_tokens": 64, "max_context": 128, "learning_rate": UNMOVED},
}
"""Both algorithms as in their papers: nothing is clamped, and the loss has no other term."""
LOW_SUCCESS = 0.06
CONTROL = Rewards("task")
"""The kind of reward with which a biased baseline is tried: its mean gradient is far from zero, so a bias shows."""
TABLES = (
    *(Rewards("normal", OFFSET), Rewards("normal")),
    *(Rewards("binary", success=success) for success in (LOW_SUCCESS, 0.25, 0.5, 0.7)),
)
JOBS = ((1.0, (Rewards("task", OFFSET), CONTROL)), (1.5, TABLES[:3]), (1.5, TABLES[3:]))
"""(temperature, kinds of reward), each from one set of completions."""


def measure(temperature: float, kinds: Sequence[Rewards], seed: int) -> list[dict[str, Any]]:
    """The figures of each kind of reward, from one set of completions."""
    torch.set_num_threads(1)
    changes = {"batch_size": BATCHES * GROUPS_A_BATCH, "temperature": temperature, "seed": seed}
    run = LaggedRun(adder(), Hyperparameters.model_validate({**ESTIMATOR, **changes}))
    before = [p.detach().clone() for p in run.trainer.policy.model.parameters()]
    groups = run.groups()
    found = [_figures(run.trainer, groups, kind, seed) for kind in kinds]
    if not all(map(torch.equal, before, run.trainer.policy.model.parameters())):
        raise AssertionError("the policy moved between two gradients: they are not of one distribution")
    return found


def _figures(trainer: Trainer, groups: Sequence[Group], kind: Rewards, seed: int) -> dict[str, Any]:
    """The two variances, their ratio, and the difference of the mean gradients."""

    def by(baseline: Baseline) -> npt.NDArray[np.float32]:
        return _gradients(trainer, [rewarded(g, kind, baseline, seed) for g in groups])

    of_remax, of_reinforce = by(greedy_baseline), by(no_baseline)
    remax, reinforce = gram(of_remax), gram(of_reinforce)
    found = {
        "rewards": {"name": kind.name, **asdict(kind)},
        "mean_reward": float(np.mean([kind.of(g, c, seed) for g in groups for c in g.completions])),
        "variance": {"remax": variance(remax), "reinforce": variance(reinforce)},
        "ratio": _ratio(remax, reinforce),
        "ratio_90": interval(_ratio, remax, reinforce, seed=seed),
        "mean_difference": _difference(of_remax - of_reinforce, remax),
    }
    if kind == CONTROL:
        found["control_difference"] = _difference(by(looking_baseline) - of_reinforce, remax)
    return found


def _ratio(remax: Matrix, reinforce: Matrix) -> float:
    return variance(remax) / variance(reinforce)


def _difference(gradients: npt.NDArray[np.float32], remax: Matrix) -> dict[str, float | None]:
    """Difference of paired gradients: in standard errors, and an upper bound as a fraction of ReMax's mean gradient.

    The fraction is None if the mean gradient itself is not significantly different from zero.
    """
    k = gram(gradients)
    at_most = max(0.0, squared_mean(k)) + 1.645 * squared_mean_error(k)
    known = mean_z(remax) > 3
    return {"z": mean_z(k), "at_most": float(np.sqrt(at_most / squared_mean(remax))) if known else None}


def _gradients(trainer: Trainer, groups: Sequence[Group]) -> npt.NDArray[np.float32]:
    """[batches, parameters] gradients of the loss."""
    found = np.empty((BATCHES, trainer.policy.parameters), np.float32)
    for number, row in enumerate(found):
        trainer.step(groups[number * GROUPS_A_BATCH : (number + 1) * GROUPS_A_BATCH], version=0)
        gradients = [p.grad for p in trainer.policy.model.parameters() if p.grad is not None]
        row[:] = torch.cat([g.flatten() for g in gradients]).numpy()
    return found
