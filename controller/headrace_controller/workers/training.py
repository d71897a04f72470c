"""Runs the workers of a job that has its resources: they start, then train and evaluate until the last version.

every worker ready ─► base model evaluated ─► begin: the workers work, versions are evaluated as they are published
learner done, last version evaluated ─► ledger closed: the rollout workers notice, and end
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace_core.concurrency import run_with_background
from headrace_core.jobs.job_record import JobRecord
from headrace_core.types.job import Job

from .evaluation_schedule import Evaluations
from .supervisor import WorkerSupervisor


async def train(record: JobRecord, job: Job, workers: Sequence[WorkerSupervisor]) -> None:
    """Returns when all steps are trained and the last version is evaluated.

    `workers`: the learner, then the rollout workers, of which the first evaluates. Raises the errors that end or pause
    the job, see `WorkerSupervisor.run`.
    """
    learner, *rollouts = workers
    begin = asyncio.Event()

    async def finish() -> None:
        await record.ledger.close("finished")

    main = [learner.run(begin), _evaluate(record, job, workers, begin)]
    await run_with_background(main, [rollout.run(begin) for rollout in rollouts], finish)


async def _evaluate(record: JobRecord, job: Job, workers: Sequence[WorkerSupervisor], begin: asyncio.Event) -> None:
    """Let the workers begin once all are ready and the base model is evaluated; returns after the last evaluation."""
    evaluations, evaluating = Evaluations(job, record.store, record.ledger), workers[1]
    await asyncio.gather(*(worker.until_ready() for worker in workers))
    await evaluations.evaluate_base_model(evaluating)
    begin.set()
    await evaluations.evaluate_until_end(evaluating)
