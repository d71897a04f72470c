"""Optimizers by name, and the learning rate of a step: a pure function of its number.

    adamw        two moments of every entry
    galore       moments within the gradient's leading singular vectors
    fira         galore, and what lies outside of them, scaled to match
    dct_adamw    moments within chosen columns of a fixed cosine basis

Invariants of each: only parameters that require a gradient are taken; matrices decay, vectors do not; all state is
tensors in `optimizer.state`, there from construction on, so that a checkpoint before the first update is like any other
and training goes on from it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from headrace_core.config.hyperparameters import Hyperparameters

from .adamw import adamw
from .dct import DctAdamW
from .galore import Fira, GaLore

OPTIMIZERS: dict[str, Callable[[nn.Module, Hyperparameters], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "galore": GaLore,
    "fira": Fira,
    "dct_adamw": DctAdamW,
}


def learning_rate(settings: Hyperparameters, version: int) -> float:
    """Of the step that updates policy `version`: linear warm-up to the peak, then constant."""
    warm = min(1.0, (version + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.peak_learning_rate * warm
