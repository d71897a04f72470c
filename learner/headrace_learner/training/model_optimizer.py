"""Optimizer updates of one model: the policy or the critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest

from ..algorithms.batch import MicroBatch
from ..optimizers import OPTIMIZERS


class TrainingDiverged(InvalidRequest):
    """The gradient's norm is infinite or NaN; repeating the step would give the same."""

    code = "training_diverged"


class ModelOptimizer:
    """A model with its optimizer."""

    def __init__(self, model: nn.Module, settings: Hyperparameters) -> None:
        self.model = model
        self.optimizer = OPTIMIZERS[settings.optimizer](model, settings)
        self._max_norm = settings.max_grad_norm
        self.before_update: Callable[[], None] | None = None
        """Called after the backward passes, before the weights change (a snapshot may still be copying them)."""

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate

    def update(self, micro_batches: Sequence[MicroBatch], loss: Callable[[MicroBatch], Tensor]) -> float:
        """Sum the gradients of the micro-batches' losses, clip, update. Returns the gradient's norm before clipping.

        Raises `TrainingDiverged`, and leaves the weights unchanged, if the norm is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for micro_batch in micro_batches:
            loss(micro_batch).backward()
        clipped = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
        norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"the gradient's norm is {norm}: lower learning_rate or max_staleness, or cap rewards"
            )
        if self.before_update is not None:
            self.before_update()
        self.optimizer.step()
        return norm
