"""AdamW (arXiv 1711.05101), fused: an update is one pass over parameters, gradients and moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace_core.config.hyperparameters import Hyperparameters

BETAS = (0.9, 0.95)
"""β₂ is below the usual 0.999: at a few hundred steps a longer memory of squared gradients never warms up."""


def adamw(model: nn.Module, settings: Hyperparameters) -> torch.optim.Optimizer:
    """AdamW for all trained parameters, with weight decay for matrices only: not for norms or biases."""
    matrices, vectors = trained(model)
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.peak_learning_rate,
        betas=BETAS,
        fused=True,
    )
    for p in (*matrices, *vectors):
        optimizer.state[p] = moments(p, p)
    return optimizer


def trained(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that require a gradient, each once: (those of two or more dimensions, the others)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]


def moments(p: Tensor, like: Tensor) -> dict[str, Tensor]:
    """Adam's state before the first update, with moments of the shape of `like`, and its step on `p`'s device."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=p.device),
        "exp_avg": torch.zeros_like(like),
        "exp_avg_sq": torch.zeros_like(like),
    }
