"""Optimizers by name, and the learning rate of a step: a pure function of its number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from headrace_core.hyperparameters import Hyperparameters


def adamw(model: nn.Module, settings: Hyperparameters) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) with β = (0.9, 0.95), decaying matrices only: not norms, not biases.

    β₂ is below the usual 0.999: at a few hundred steps a longer memory of squared gradients never warms up.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.peak_learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    for p in (*matrices, *others):  # from the start, so that a checkpoint before the first update is like any other
        zero = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


OPTIMIZERS: dict[str, Callable[[nn.Module, Hyperparameters], torch.optim.Optimizer]] = {"adamw": adamw}


def learning_rate(settings: Hyperparameters, version: int) -> float:
    """Of the step that updates policy `version`: linear warm-up to the peak, then constant."""
    warm = min(1.0, (version + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.peak_learning_rate * warm
