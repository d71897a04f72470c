"""A job's evaluations: the base model, every interval of policy versions, and the last version for certain.

    ledger's version ──► due? ──► the first rollout worker evaluates, beside its work ──► measurement, event

Asked of the worker again where it dies meanwhile; an evaluation on record is not made again.
"""

from __future__ import annotations

import msgspec

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import Job, JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.types.metrics import EvaluationMetrics

from .worker_supervisor import WorkerSupervisor

_SIGNAL_SECONDS = 1.0
"""Longest sleep while waiting for a version: a bound should a signal be missed."""


class Evaluations:
    """The evaluations of one job: which are due, running and done."""

    def __init__(self, job: Job, jobs: JobStore, ledger: Ledger) -> None:
        self._job, self._jobs, self._ledger = job, jobs, ledger

    async def first(self, worker: WorkerSupervisor) -> None:
        """Evaluate the base model, unless that or a later version has been."""
        if self._job.validation_file is not None and not await self._versions():
            await self._evaluate(worker, 0)

    async def rest(self, worker: WorkerSupervisor) -> None:
        """Returns after the last version's."""
        if self._job.validation_file is None:
            return
        total = self._job.total_steps
        interval = Hyperparameters.model_validate(self._job.hyperparameters).evaluation_interval(total)
        last, signal = max(await self._versions(), default=0), "0"
        while last < total:
            version, _ = await self._ledger.newest()
            if version // interval > last // interval or version == total:
                last = await self._evaluate(worker, version)
            else:
                signal = await self._ledger.signal(signal, _SIGNAL_SECONDS)

    async def _versions(self) -> list[int]:
        """Policy versions evaluated so far, by this controller or one before."""
        return [data["step"] for _, kind, data in await self._jobs.metrics(self._job.id) if kind == "evaluation"]

    async def _evaluate(self, worker: WorkerSupervisor, version: int) -> int:
        """The policy version that was measured: `version`, or the newer one that the worker had by then."""
        result: EvaluationMetrics = await worker.call("evaluate", version)
        await self._jobs.record(self._job.id, result)
        mean = "none" if result.reward_mean is None else f"{result.reward_mean:.3f}"
        failed = f", {result.reward_failed} without a reward because it failed" if result.reward_failed else ""
        message = f"validation at step {result.step}: mean reward={mean} on {result.samples} samples{failed}"
        data = msgspec.to_builtins(result) | {"full_valid_mean_reward": result.reward_mean}
        await self._jobs.tell(self._job.id, message, type="metrics", data=data)
        return result.step
