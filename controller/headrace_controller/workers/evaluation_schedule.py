"""A job's evaluations: the base model, every interval of policy versions, and the last version for certain.

    ledger's version ──► due? ──► the first rollout worker evaluates, beside its work ──► measurement, event

Asked of the worker again where it dies meanwhile, for whatever version that has then; an evaluation on record is not
made again. One that was due and that the job went past is named in the record of the next.
"""

from __future__ import annotations

import msgspec

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import Job, JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.redis_access.json_records import decode_records
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.events import EvaluationSummary
from headrace_core.types.metrics import EvaluationMetrics

from .supervisor import WorkerSupervisor

_SIGNAL_SECONDS = 1.0
"""Longest sleep while waiting for a version: a bound should a signal be missed."""
_NEWEST = 20
"""Records of evaluations that are read for the newest one's step: some may be damaged."""


class Evaluations:
    """The evaluations of one job: which are due, running and done."""

    def __init__(self, job: Job, jobs: JobStore, ledger: Ledger) -> None:
        self._job, self._jobs, self._ledger = job, jobs, ledger
        settings = Hyperparameters.model_validate(job.hyperparameters)
        self._interval = settings.evaluation_interval(job.total_steps)

    async def first(self, worker: WorkerSupervisor) -> None:
        """Evaluate the base model, unless that or a later version has been."""
        if self._job.validation_file is not None and await self._last() < 0:
            await self._evaluate(worker, 0, -1)

    async def rest(self, worker: WorkerSupervisor) -> None:
        """Returns after the last version's."""
        if self._job.validation_file is None:
            return
        last, signal = await self._last(), "0"
        while last < self._job.total_steps:
            version, _ = await self._ledger.newest()
            if self._due(last, version):
                last = await self._evaluate(worker, version, last)
            else:
                signal = await self._ledger.signal(signal, _SIGNAL_SECONDS)

    async def _last(self) -> int:
        """The newest policy version evaluated so far, by this controller or one before; -1 before the first."""
        found = await self._jobs.history.newest(self._job.id, "evaluation", None, _NEWEST)
        where = JobKeys(self._job.id).history("evaluation")
        measured = decode_records(((f"{where} {e.number}-0", e.data) for e in found), EvaluationMetrics)
        return max((m.step for m in measured), default=-1)

    def _due(self, after: int, to: int) -> list[int]:
        """The policy versions of `after + 1 … to` that are to be evaluated."""
        total, interval = self._job.total_steps, self._interval
        last = [total] if after < total <= to and total % interval else []
        return [*range((after // interval + 1) * interval, to + 1, interval), *last]

    async def _evaluate(self, worker: WorkerSupervisor, version: int, last: int) -> int:
        """The policy version that was measured: `version`, or the newer one that the worker had by then.

        `last`: the one measured before.
        """
        result: EvaluationMetrics = await worker.call("evaluate", version)
        result = msgspec.structs.replace(result, left_out=tuple(self._due(last, result.step)[:-1]))
        await self._jobs.record(self._job.id, result)
        mean = "none" if result.reward_mean is None else f"{result.reward_mean:.3f}"
        failed = f", {result.reward_failed} without a reward because it failed" if result.reward_failed else ""
        missed = f"; not made at {', '.join(map(str, result.left_out))}: the job was past" if result.left_out else ""
        message = f"validation at step {result.step}: mean reward={mean} on {result.samples} samples{failed}{missed}"
        await self._jobs.emit_event(self._job.id, message, type="metrics", data=EvaluationSummary.of(result))
        return result.step
