"""Which of a job's checkpoints are retained: the newest, the best, and those that unfinished jobs started from.

    saved ─► listed ─► … more than `keep_checkpoints` ─► not listed ─► renamed (`.partial`) ─► deleted

A listed checkpoint is one that is recorded in Redis and shown by the API.

Invariants: the two newest are always retained: if the newest is damaged, the other one and the groups that the ledger
still has lead to the newest state (`worker`); a checkpoint is removed from the list before its folder is deleted, and
if the learner dies between the two, its successor deletes the folder; no checkpoint that an unfinished job started from
is deleted.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace_core.jobs.history import Kind
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.json_records import decode_records
from headrace_core.storage.atomic_write import PARTIAL
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.job import ENDED, Checkpoint
from headrace_core.types.metrics import EvaluationMetrics

_PAGE = 2000
_EVALUATIONS: tuple[Kind, ...] = ("evaluation",)


class Retention:
    """Retains the `keep` newest checkpoints of one job, which saves one every `interval` steps in folder `output`."""

    def __init__(self, jobs: JobStore, job_id: str, output: Path, keep: int, interval: int) -> None:
        self._jobs, self._job_id, self._output, self._keep, self._interval = jobs, job_id, output, keep, interval

    async def apply(self) -> None:
        """Remove the checkpoints that need not be retained. Called after each checkpoint, once it is listed."""
        listed = await self._jobs.checkpoints(self._job_id)
        if len(listed) <= self._keep:
            return
        best = best_of(listed, await self._rewards(), self._interval)
        needed = await self._needed()
        removed = [c for c in listed[self._keep :] if c is not best and not any(_within(p, c.path) for p in needed)]
        for checkpoint in removed:
            await self._jobs.remove_checkpoint(self._job_id, checkpoint.step)
        if removed:
            steps = ", ".join(str(c.step) for c in reversed(removed))
            message = f"removed the checkpoint of step {steps}: the {self._keep} newest and the best one are kept"
            await self._jobs.emit_event(self._job_id, message)
        retained = {c.step for c in listed} - {c.step for c in removed}
        await asyncio.to_thread(_delete_unlisted, self._output, retained, listed[0].step)

    async def _rewards(self) -> dict[int, float]:
        """Mean reward of the job's evaluations, by policy version."""
        rewards, number = dict[int, float](), 0
        while entries := await self._jobs.history.after(self._job_id, number, _PAGE, _EVALUATIONS):
            number = entries[-1].number
            records = [(f"evaluation {e.number}", e.data) for e in entries]
            for evaluation in decode_records(records, EvaluationMetrics):
                if evaluation.reward_mean is not None:
                    rewards[evaluation.step] = evaluation.reward_mean
        return rewards

    async def _needed(self) -> list[str]:
        """Paths of the models that unfinished jobs started from, which may be checkpoints of this job."""
        return [job.model_path for job in await self._jobs.all() if job.status not in ENDED]


def best_of(offered: Sequence[Checkpoint], evaluated: Mapping[int, float], interval: int) -> Checkpoint | None:
    """The checkpoint with the highest mean reward in evaluations; if none was evaluated, the highest in training.

    Of equal rewards the newest checkpoint wins. An evaluation may run on a later version than the one that it was
    requested for; it then counts for the last checkpoint due before that version, unless that checkpoint's own version
    was evaluated.

    `offered` is newest first. `evaluated`: mean rewards by policy version. Returns None if there is no reward at all.
    """
    # of several evaluations after one checkpoint, the first counts: it is written last
    by_due_step = {version - version % interval: evaluated[version] for version in sorted(evaluated, reverse=True)}
    rewards = {**by_due_step, **evaluated}
    measured = [(rewards[c.step], c) for c in offered if c.step in rewards]
    if not measured:
        trained = [(c.metrics.get("train_mean_reward"), c) for c in offered]
        measured = [(reward, c) for reward, c in trained if reward is not None]
    return max(measured, key=lambda pair: pair[0])[1] if measured else None


def _within(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _delete_unlisted(output: Path, retained: set[int], newest: int) -> None:
    """Delete the folders of checkpoints older than `newest` that are not listed, also those a dead learner left."""
    for version, folder in JobFolder(output).completed_checkpoints():
        if version < newest and version not in retained:
            renamed = folder.with_name(folder.name + PARTIAL)  # a half-deleted folder must not look like a checkpoint
            shutil.rmtree(renamed, ignore_errors=True)
            folder.rename(renamed)
            shutil.rmtree(renamed)
