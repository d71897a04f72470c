"""The learner's report of a step: the entry of the metrics stream, and the event for users."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.number_text import decimal
from headrace_core.types.events import StepSummary
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
    return f"Step {metrics.step}/{metrics.total_steps}, train mean reward={decimal(metrics.reward_mean, 2)}"


class StepReporter:
    """Reports the steps of one learner, in order."""

    def __init__(self, job: JobRecord, live: SettingsLog, total_steps: int) -> None:
        self._jobs, self._job_id, self._live, self._total_steps = job.store, job.id, live, total_steps
        self._spent: dict[str, float] = {}
        """Seconds by stage at the last report."""
        self._stalled = 0.0
        """Seconds that training had waited for snapshots by then."""

    async def report(
        self, groups: Sequence[Group], result: StepResult, step: int, spent: dict[str, float], stalled: float
    ) -> None:
        """Report step `step` (1 for the first).

        `spent`: seconds by stage since the start (`ActivityTimer`). `stalled`: how many of them training waited for
        snapshots.
        """
        seconds = self._seconds(result, spent, stalled)
        metrics = step_metrics(groups, result, step, self._total_steps, seconds)
        await self._jobs.record(self._job_id, metrics)
        data = StepSummary.of(metrics, self._live.at(step - 1).max_staleness)
        await self._jobs.emit_event(self._job_id, event_message(metrics), type="metrics", data=data)

    def _seconds(self, result: StepResult, now: dict[str, float], stalled_now: float) -> dict[str, float]:
        """Seconds of one step by stage."""
        spent, self._spent = {k: v - self._spent.get(k, 0.0) for k, v in now.items()}, now
        stages = {stage: spent.get(stage, 0.0) for stage in ("publish", "settle", "snapshot", "checkpoint")}
        stalled, self._stalled = stalled_now - self._stalled, stalled_now
        stages["snapshot"] += stalled
        train = result.train_seconds - stalled
        return {"wait": spent.get("groups", 0.0), "batch": result.batch_seconds, "train": train} | stages
