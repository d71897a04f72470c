"""What the learner reports of a step: the seconds of each stage, since the step before it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
from redis.asyncio import Redis

from headrace_core.jobs.history import STEPS
from headrace_core.jobs.job_record import JobRecord
from headrace_core.types.metrics import StepMetrics
from headrace_lab.virtual.simulated_training import step_result
from headrace_learner.algorithms.token_selection import AgeCount
from headrace_learner.step_report import StepReporter

from .cases import hyperparameters


async def test_each_step_has_its_own_seconds_and_waits_for_snapshots_are_no_training(redis: Redis) -> None:
    record = JobRecord.on(redis, "ftjob-report")
    reporter = StepReporter(record, record.live_settings(hyperparameters()), total_steps=2)
    result = replace(step_result(AgeCount(Counter({0: 4}), Counter())), batch_seconds=0.5, train_seconds=3.0)
    await reporter.report([], result, 1, {"groups": 1.0, "busy": 3.5, "publish": 0.2}, 0.0)
    await reporter.report([], result, 2, {"groups": 5.0, "busy": 7.0, "publish": 0.6, "snapshot": 0.1}, 2.0)
    entries = await record.store.history.after(record.id, 0, 10, STEPS)
    measured = [msgspec.json.decode(entry.data, type=StepMetrics) for entry in entries]
    first, second = ({stage: round(spent, 6) for stage, spent in step.seconds.items()} for step in measured)
    nothing = {"settle": 0.0, "snapshot": 0.0, "checkpoint": 0.0}
    assert first == {"wait": 1.0, "batch": 0.5, "train": 3.0, "publish": 0.2} | nothing
    assert second == {"wait": 4.0, "batch": 0.5, "train": 1.0, "publish": 0.4} | nothing | {"snapshot": 2.1}
    messages = {event.message for _, event in await record.store.events(record.id)}
    assert messages == {f"Step {n}/2, train mean reward=none" for n in (1, 2)}
