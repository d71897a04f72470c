"""When a job evaluates: its base model, a policy version at every evaluation interval, and always the last version.

    ledger's version ──► due? ──► the first rollout worker evaluates, beside its work ──► measurement, event

If the worker dies during an evaluation, its successor evaluates the version that it has then. A recorded evaluation is
not repeated. If the job went past a version that was due, the record of the next evaluation names it.
"""

from __future__ import annotations

import msgspec

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.number_text import decimal
from headrace_core.redis_access.json_records import decode_records
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.events import EvaluationSummary
from headrace_core.types.job import Job
from headrace_core.types.metrics import EvaluationMetrics

from .supervisor import WorkerSupervisor

_SIGNAL_SECONDS = 1.0
"""Longest wait for a signal of a new version before the version is read again, in case a signal is missed."""
_READ_RECORDS = 20
"""Newest evaluation records that are read to find the last step: some may be damaged."""


class Evaluations:
    """The evaluations of one job: which are due, running and done."""

    def __init__(self, job: Job, jobs: JobStore, ledger: Ledger) -> None:
        self._job, self._jobs, self._ledger = job, jobs, ledger
        settings = Hyperparameters.model_validate(job.hyperparameters)
        self._interval = settings.evaluation_interval(job.total_steps)

    async def evaluate_base_model(self, worker: WorkerSupervisor) -> None:
        """Evaluate the base model, unless it or a later version was evaluated before."""
        if self._job.validation_file is not None and await self._last_evaluated() < 0:
            await self._evaluate(worker, 0, -1)

    async def evaluate_until_end(self, worker: WorkerSupervisor) -> None:
        """Evaluate each version that is due; returns after the last version's evaluation."""
        if self._job.validation_file is None:
            return
        last, signal = await self._last_evaluated(), "0"
        while last < self._job.total_steps:
            version, _ = await self._ledger.newest()
            if self._due_versions(last, version):
                last = await self._evaluate(worker, version, last)
            else:
                signal = await self._ledger.signal(signal, _SIGNAL_SECONDS)

    async def _last_evaluated(self) -> int:
        """The newest policy version with a recorded evaluation, by this controller or an earlier one; -1 if none."""
        entries = await self._jobs.history.newest(self._job.id, "evaluation", None, _READ_RECORDS)
        key = JobKeys(self._job.id).history("evaluation")
        evaluations = decode_records(((f"{key} {e.number}-0", e.data) for e in entries), EvaluationMetrics)
        return max((e.step for e in evaluations), default=-1)

    def _due_versions(self, after: int, to: int) -> list[int]:
        """The policy versions among `after + 1 … to` that are due for an evaluation."""
        total, interval = self._job.total_steps, self._interval
        last = [total] if after < total <= to and total % interval else []
        return [*range((after // interval + 1) * interval, to + 1, interval), *last]

    async def _evaluate(self, worker: WorkerSupervisor, version: int, last: int) -> int:
        """Evaluate and record. Returns the policy version that was evaluated: `version`, or a newer one that the worker
        had loaded by then.

        `last`: the version of the evaluation before; -1 if none.
        """
        result: EvaluationMetrics = await worker.call("evaluate", version)
        result = msgspec.structs.replace(result, left_out=tuple(self._due_versions(last, result.step)[:-1]))
        await self._jobs.record(self._job.id, result)
        mean = decimal(result.reward_mean, 3)
        failed = f", {result.reward_failed} without a reward because it failed" if result.reward_failed else ""
        missed = f"; not made at {', '.join(map(str, result.left_out))}: the job was past" if result.left_out else ""
        message = f"validation at step {result.step}: mean reward={mean} on {result.samples} samples{failed}{missed}"
        await self._jobs.emit_event(self._job.id, message, type="metrics", data=EvaluationSummary.of(result))
        return result.step
