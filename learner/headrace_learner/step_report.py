"""What the learner tells of a step: the entry of the metrics stream, and the event that users see."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace_core.types.metrics import StepMetrics
from headrace_core.types.trajectory import Group

from .training.step_metrics import summarise
from .training.trainer import StepResult


def step_metrics(
    groups: Sequence[Group], result: StepResult, step: int, total_steps: int, seconds: Mapping[str, float]
) -> StepMetrics:
    """Figures of step `step` (1 for the first)."""
    summary, measured = summarise(groups), result.measured
    return StepMetrics(
        step=step,
        total_steps=total_steps,
        time=time.time(),
        seconds=dict(seconds),
        reward_mean=summary.reward_mean,
        reward_std=summary.reward_std,
        components=summary.components,
        zero_variance_share=summary.zero_variance_share,
        groups=len(groups),
        completions=summary.completions,
        tokens=result.counts.contributing.total(),
        masked_tokens=result.counts.masked.total(),
        ages={str(age): metrics for age, metrics in measured.ages.items()},
        completion_length=summary.completion_length,
        truncated_share=summary.truncated_share,
        loss=result.loss,
        grad_norm=result.grad_norm,
        learning_rate=result.learning_rate,
        entropy=measured.entropy,
        effective_sample_size=measured.effective_sample_size,
        clip_share=measured.clip_share,
        behaviour_kl=measured.behaviour_kl,
        extra=measured.extra,
    )


def event_message(metrics: StepMetrics) -> str:
    """One line for the user."""
    reward = "none" if metrics.reward_mean is None else f"{metrics.reward_mean:.2f}"
    return f"Step {metrics.step}/{metrics.total_steps}, train mean reward={reward}"


def event_data(metrics: StepMetrics, max_staleness: int) -> dict[str, Any]:
    """The figures beside that line. Ages are of the tokens that contributed to the gradient."""
    trained = {int(age): m.tokens - m.masked for age, m in metrics.ages.items() if m.tokens > m.masked}
    return {
        "step": metrics.step,
        "total_steps": metrics.total_steps,
        "train_mean_reward": metrics.reward_mean,
        "train_reward_std": metrics.reward_std,
        "train_loss": metrics.loss,
        "entropy": metrics.entropy,
        "grad_norm": metrics.grad_norm,
        "completion_length": metrics.completion_length,
        "trained_tokens": metrics.tokens,
        "masked_tokens": metrics.masked_tokens,
        "staleness": {
            "age_mean": sum(age * n for age, n in trained.items()) / max(1, sum(trained.values())),
            "age_max": max(trained, default=0),
            "bound": max_staleness,
        },
    }
