"""Gradient descent of one model: the policy's, or the critic's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headrace_core.hyperparameters import Hyperparameters

from .batch import MicroBatch
from .optimizers import OPTIMIZERS


class Descent:
    """A model and its optimizer."""

    def __init__(self, model: nn.Module, settings: Hyperparameters) -> None:
        self.model = model
        self.optimizer = OPTIMIZERS[settings.optimizer](model, settings)
        self._max_norm = settings.max_grad_norm

    def set_rate(self, learning_rate: float) -> None:
        """Of the next updates."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate

    def update(self, micro_batches: Sequence[MicroBatch], loss: Callable[[MicroBatch], Tensor]) -> float:
        """Sum the gradients of the micro-batches' losses, clip, step; returns the norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        for micro_batch in micro_batches:
            loss(micro_batch).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
        self.optimizer.step()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
