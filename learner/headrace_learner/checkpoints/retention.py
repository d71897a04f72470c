"""Which of a job's checkpoints are kept: the newest ones, the best one, and those that other jobs began with.

    saved ─► offered ─► … more than `keep_checkpoints` ─► offered no more ─► renamed (`.partial`) ─► gone

Invariants: the two newest are always kept, since between them they hold every step (`worker`); a checkpoint is offered
no more before its folder goes, and where the learner dies between the two, its successor removes the folder; nothing
that an unfinished job started from is removed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace_core.jobs.history import Kind
from headrace_core.jobs.job_store import ENDED, Checkpoint, JobStore
from headrace_core.redis_access.json_records import decode_records
from headrace_core.storage.atomic_write import PARTIAL
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.metrics import EvaluationMetrics

_PAGE = 2000
_EVALUATIONS: tuple[Kind, ...] = ("evaluation",)


class Retention:
    """Of one job, whose folder is `output`: its `keep` newest checkpoints; it saves one every `interval` steps."""

    def __init__(self, jobs: JobStore, job_id: str, output: Path, keep: int, interval: int) -> None:
        self._jobs, self._job_id, self._output, self._keep, self._interval = jobs, job_id, output, keep, interval

    async def apply(self) -> None:
        """Remove what is to be kept no longer. Called after each checkpoint, once it is offered."""
        offered = await self._jobs.checkpoints(self._job_id)
        if len(offered) <= self._keep:
            return
        best = best_of(offered, await self._rewards(), self._interval)
        needed = await self._needed()
        gone = [c for c in offered[self._keep :] if c is not best and not any(_within(p, c.path) for p in needed)]
        for checkpoint in gone:
            await self._jobs.remove_checkpoint(self._job_id, checkpoint.step)
        if gone:
            steps = ", ".join(str(c.step) for c in reversed(gone))
            message = f"removed the checkpoint of step {steps}: the {self._keep} newest and the best one are kept"
            await self._jobs.emit_event(self._job_id, message)
        kept = {c.step for c in offered} - {c.step for c in gone}
        await asyncio.to_thread(_delete_unoffered, self._output, kept, offered[0].step)

    async def _rewards(self) -> dict[int, float]:
        """Mean reward of the job's evaluations, by policy version."""
        found, number = dict[int, float](), 0
        while entries := await self._jobs.history.after(self._job_id, number, _PAGE, _EVALUATIONS):
            number = entries[-1].number
            for one in decode_records([(f"evaluation {e.number}", e.data) for e in entries], EvaluationMetrics):
                if one.reward_mean is not None:
                    found[one.step] = one.reward_mean
        return found

    async def _needed(self) -> list[str]:
        """Models of unfinished jobs."""
        return [job.model_path for job in await self._jobs.all() if job.status not in ENDED]


def best_of(offered: Sequence[Checkpoint], evaluated: Mapping[int, float], interval: int) -> Checkpoint | None:
    """That of the highest mean reward in an evaluation; without any, of the highest in training. The newest of equals.

    An evaluation may be of a later version than it was asked for. It then counts for the checkpoint that was due last
    before that version, unless that one's own version was evaluated.

    `offered`: newest first. None where nothing was measured.
    """
    since = {version - version % interval: evaluated[version] for version in sorted(evaluated, reverse=True)}
    rewards = {**since, **evaluated}
    measured = [(rewards[c.step], c) for c in offered if c.step in rewards]
    if not measured:
        trained = [(c.metrics.get("train_mean_reward"), c) for c in offered]
        measured = [(reward, c) for reward, c in trained if reward is not None]
    return max(measured, key=lambda found: found[0])[1] if measured else None


def _within(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _delete_unoffered(output: Path, kept: set[int], newest: int) -> None:
    """The folders of older checkpoints that are offered no more, also those that a learner before left."""
    for version, folder in JobFolder(output).completed_checkpoints():
        if version < newest and version not in kept:
            going = folder.with_name(folder.name + PARTIAL)  # what is renamed is no checkpoint to anybody
            shutil.rmtree(going, ignore_errors=True)
            folder.rename(going)
            shutil.rmtree(going)
