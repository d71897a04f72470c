"""What the leave-one-out baseline is worth: the variance of VeriFree's gradient with it and without, early and late.

Of the careless adder before its training and after `STEPS` steps of VeriFree: the same groups, gradients of the real
trainer. No weight moves while they are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from evidence.verifree.exact import gradient
from evidence.verifree.training import ARMS, SETTINGS, Run, without_baseline
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group
from headrace_lab.training.gradient_statistics import Matrix, gram, interval, variance
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.training.trainer import Trainer

STEPS = 24
BATCHES, GROUPS_A_BATCH = 64, 2
STILL: dict[str, Any] = {"batch_size": GROUPS_A_BATCH, "max_grad_norm": 1e9, "learning_rate": 1e-30}
"""Settings with which nothing is clipped and no weight changes."""
OTHER_PROMPTS = 1_000_000
"""Number of the first group; training uses those from 0 on."""


def measure(model: Path, seed: int) -> list[dict[str, Any]]:
    """Figures before the training and after it."""
    torch.set_num_threads(1)
    run = Run("verifree", seed, model)
    found = [_measured(run, seed)]
    for _ in range(STEPS):
        run.step()
    return [*found, _measured(run, seed)]


def _measured(run: Run, seed: int) -> dict[str, Any]:
    groups = run.groups(OTHER_PROMPTS, BATCHES * GROUPS_A_BATCH)
    with_it = _gram(run, groups, {})
    without = _gram(run, [without_baseline(group) for group in groups], ARMS["no_baseline"][1])
    return {
        "step": run.version,
        "likelihood": float(np.mean([c.reward for g in groups for c in g.completions])),
        "ratio": _ratio(without, with_it),
        "ratio_90": interval(_ratio, without, with_it, seed=seed),
    }


def _gram(run: Run, groups: list[Group], changes: dict[str, Any]) -> Matrix:
    settings = Hyperparameters.model_validate({**SETTINGS, **changes, **STILL})
    trainer = Trainer(run.trainer.policy, algorithm(settings.algorithm), settings)
    size = GROUPS_A_BATCH
    return gram(np.stack([gradient(trainer, groups[i * size : (i + 1) * size], run.version) for i in range(BATCHES)]))


def _ratio(without: Matrix, with_it: Matrix) -> float:
    return variance(without) / variance(with_it)
