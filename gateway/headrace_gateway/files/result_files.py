"""The result file of a job that has ended: the metrics of its steps as CSV, listed and read like an uploaded file.

It is made when it is first asked for, out of the job's history, which must have ended by then: a job that was cancelled
or that failed names it once it is at rest, because its learner may record a step until then. Its id follows from the
job's; a job that ended before its first step has none.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from headrace_core.errors import InvalidState
from headrace_core.jobs.history import HistoryEntry, Kind
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.json_records import decode_records
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import ENDED, Job
from headrace_core.types.metrics import EvaluationMetrics, StepMetrics

from .file_store import FileStore, StoredFile

PURPOSE: Literal["fine-tune-results"] = "fine-tune-results"
_PREFIX = "file-results-"
_PAGE = 2000
_KINDS: tuple[Kind, ...] = ("step", "evaluation")
_COLUMNS = (
    "step", "time", "train_mean_reward", "train_reward_std", "full_valid_mean_reward", "train_loss", "learning_rate",
    "grad_norm", "entropy", "completion_length", "tokens", "masked_tokens", "largest_age", "effective_sample_size",
    "clip_share",
)  # fmt: skip


def result_files(job: Job) -> list[str]:
    """Ids of the job's result files: one, or none yet."""
    over = job.status == "succeeded" or (job.status in ENDED and job.at_rest)
    return [_PREFIX + job.id.removeprefix("ftjob-")] if over and job.pace else []


async def find(files: FileStore, jobs: JobStore, file_id: str) -> StoredFile:
    """A file of any purpose; creates a result file if necessary. Raises `NotFound`."""
    if file_id.startswith(_PREFIX) and not await files.has(file_id):
        for job in await jobs.all():
            if file_id in result_files(job):
                await _make(files, jobs, job, file_id)
    return await files.get(file_id)


async def every(files: FileStore, jobs: JobStore) -> list[StoredFile]:
    """All files, newest first, including the result files of all jobs that have ended."""
    known = {file.id for file in await files.all()}
    for job in await jobs.all():
        for file_id in result_files(job):
            if file_id not in known:
                await _make(files, jobs, job, file_id)
    return await files.all()


def check_removable(file: StoredFile) -> None:
    """Raises `InvalidState` for a result file."""
    if file.purpose == PURPOSE:
        raise InvalidState(f"file {file.id} belongs to its job, and cannot be deleted", param="file_id")


async def _make(files: FileStore, jobs: JobStore, job: Job, file_id: str) -> None:
    rows: dict[int, dict[str, Any]] = {}
    number = 0
    while entries := await jobs.history.after(job.id, number, _PAGE, _KINDS):
        number = entries[-1].number
        for entry in entries:
            for figures in _figures(job, entry):
                rows.setdefault(figures["step"], {}).update(figures)
    text = await asyncio.to_thread(_to_csv, [rows[step] for step in sorted(rows)])
    name = f"{job.id}-steps.csv"
    described = StoredFile(file_id, job.finished_at or job.created_at, name, 0, PURPOSE, job.owner)
    await files.keep(described, io.BytesIO(text))


def _figures(job: Job, entry: HistoryEntry) -> Iterator[dict[str, Any]]:
    """The entry's columns of its row; nothing for a damaged entry."""
    raw = [(JobKeys(job.id).history(entry.kind), entry.data)]
    if entry.kind == "step":
        yield from (_of_step(msgspec.to_builtins(step)) for step in decode_records(raw, StepMetrics))
    for e in decode_records(raw, EvaluationMetrics) if entry.kind == "evaluation" else ():
        yield {"step": e.step, "full_valid_mean_reward": e.reward_mean}


def _of_step(data: dict[str, Any]) -> dict[str, Any]:
    trained = [int(age) for age, tokens in data["ages"].items() if tokens["tokens"] > tokens["masked"]]
    named = {"train_mean_reward": "reward_mean", "train_reward_std": "reward_std", "train_loss": "loss"}
    same = {column: data[column] for column in _COLUMNS if column in StepMetrics.__struct_fields__}
    return same | {column: data[field] for column, field in named.items()} | {"largest_age": max(trained, default=None)}


def _to_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
