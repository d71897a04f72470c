"""The learner's report of a step: the entry of the metrics stream, and the event for users."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from headrace_core.types.metrics import StepMetrics
from headrace_core.types.trajectory import Group

from .training.step_metrics import summarise
from .training.trainer import StepResult


def step_metrics(
    groups: Sequence[Group], result: StepResult, step: int, total_steps: int, seconds: Mapping[str, float]
) -> StepMetrics:
    """The measurements of step `step` (1 for the first). `seconds`: duration of each stage."""
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
    """The message of a step's event."""
    reward = "none" if metrics.reward_mean is None else f"{metrics.reward_mean:.2f}"
    return f"Step {metrics.step}/{metrics.total_steps}, train mean reward={reward}"
