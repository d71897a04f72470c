"""Optimizers by name, and the learning rate of a step, which is a pure function of its number.

    adamw        two moments per parameter entry
    galore       moments in the subspace of the gradient's leading singular vectors
    fira         galore, plus the part of the gradient outside the subspace, scaled to match
    dct_adamw    moments in the subspace of selected columns of a fixed cosine basis

Invariants of each: only parameters that require a gradient are updated; weight decay applies to matrices, not vectors;
all state is tensors in `optimizer.state` that exist from construction on, so that a checkpoint from before the first
update is like any other and training continues from it bit for bit.
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
    """Learning rate of the step that updates policy `version`: linear warm-up to the peak, then constant."""
    warmup = min(1.0, (version + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.peak_learning_rate * warmup
