"""The work of a job whose workers are placed: all of them start, then train and evaluate until the last version.

every worker ready ─► base model evaluated ─► begin: workers work, versions are evaluated as they come
learner done, last version evaluated ─► ledger closed: the rollout workers see that and end
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace_core.concurrency import until
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import Job

from .evaluation_schedule import Evaluations
from .supervisor import WorkerSupervisor


async def train(record: JobRecord, job: Job, workers: Sequence[WorkerSupervisor]) -> None:
    """Returns when all is done. The learner is the first of `workers`; the second evaluates.

    Raises what ends the job or pauses it, see `WorkerSupervisor.run`.
    """
    learner, *rollouts = workers
    begin = asyncio.Event()

    async def finish() -> None:
        await record.ledger.close("finished")

    main = [learner.run(begin), _evaluate(record, job, workers, begin)]
    await until(main, [rollout.run(begin) for rollout in rollouts], finish)


async def _evaluate(record: JobRecord, job: Job, workers: Sequence[WorkerSupervisor], begin: asyncio.Event) -> None:
    """Let the workers begin once all are ready and the base model is evaluated; returns after the last evaluation."""
    evaluations, evaluating = Evaluations(job, record.store, record.ledger), workers[1]
    await asyncio.gather(*(worker.until_ready() for worker in workers))
    await evaluations.first(evaluating)
    begin.set()
    await evaluations.rest(evaluating)
