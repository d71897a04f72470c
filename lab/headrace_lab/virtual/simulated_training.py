"""The result of a simulated training step: only the numbers of tokens by age are real."""

from __future__ import annotations

import numpy as np

from headrace_learner.algorithms.token_selection import AgeCount
from headrace_learner.training.step_metrics import StepFigures
from headrace_learner.training.trainer import StepResult


def step_result(counts: AgeCount, train_seconds: float = 0.0) -> StepResult:
    """A step's result. The gradient's norm is 1, because a job whose steps have no gradient is paused."""
    nothing = StepFigures(
        {}, loss=0.0, entropy=0.0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0, extra={}
    )
    return StepResult(
        samples=(),
        advantages_N=np.zeros(0, np.float32),
        importance_N=np.zeros(0),
        counts=counts,
        measured=nothing,
        loss=0.0,
        grad_norm=1.0,
        learning_rate=0.0,
        batch_seconds=0.0,
        train_seconds=train_seconds,
    )
