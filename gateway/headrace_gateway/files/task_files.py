"""Makes files from task references such as `reasoning_gym:chain_sum?size=1000`, which a request may give in place of a
file id. The rows are made once, and stored as a file like any other.

reference ─► a process of the rewards service ─► temporary file ─► FileStore ─► its id, which the job then names
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.protocols.grader_check import RowsReport, RowsRequest
from headrace_core.storage.atomic_write import ABANDONED_AFTER_SECONDS
from headrace_core.storage.dataset import names_task

from ..limited_processes.json_process import ask_rewards
from ..limited_processes.process_slots import ProcessSlots
from .file_store import FileStore

TASK_SECONDS = 300.0
AT_ONCE = 2
"""Most files that a gateway makes at the same time: each needs a process that imports a library, in a sandbox."""


def task_slots() -> ProcessSlots:
    """The process slots of one gateway, shared by all its requests."""
    return ProcessSlots(AT_ONCE, TASK_SECONDS, f"the rows of {AT_ONCE} other tasks are being made")


class TaskFiles:
    """The files that the submission of one job needs made. `async with`: a request that is refused leaves none. What a
    gateway that died has left, or one that does not know whether the job was stored, `sweep` deletes."""

    def __init__(
        self, files: FileStore, folder: Path, rules: RewardPermissions, slots: ProcessSlots, job_id: str
    ) -> None:
        """`folder` takes what is not whole yet; `rules` hold the libraries as they hold reward code."""
        self._job_id = job_id
        self._files = files
        self._slots = slots
        self._rules = rules
        self._folder = folder
        self._made: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await self.remove()

    async def remove(self) -> None:
        """Delete those that were made: no job names them."""
        while self._made:
            await self._files.remove(self._made.pop())

    async def file_id(self, reference: str, param: str) -> str:
        """The id of a new file with the task's rows; anything but a task reference is returned unchanged. Raises
        `InvalidRequest`, and `TimedOut` if no slot became free."""
        if not names_task(reference):
            return reference
        self._folder.mkdir(parents=True, exist_ok=True)
        async with self._slots.slot():
            with tempfile.TemporaryDirectory(prefix=".task-", dir=self._folder) as folder:
                path = Path(folder) / "rows.jsonl"
                question = RowsRequest(reference, str(path.absolute()), self._files.max_bytes, self._rules)
                report = await ask_rewards(
                    "tasks",
                    question,
                    RowsReport,
                    seconds=TASK_SECONDS,
                    what=f"making the rows of {reference}",
                    param=param,
                )
                if report.error is not None:
                    raise InvalidRequest(f"{param}: {report.error.message}", param=param, code=report.error.code)
                with path.open("rb") as source:
                    stored = await self._files.add(source, f"{reference}.jsonl", "fine-tune", self._job_id)
        self._made.append(stored.id)
        return stored.id


async def sweep(files: FileStore, jobs: JobStore) -> list[str]:
    """Delete the files that were made for a submission long ago, and that no job names; their ids. While a job's record
    is damaged, nobody knows which files it names, and none is deleted. `files` and `jobs` see those of every user."""
    old = [
        f.id
        for f in await files.all()
        if f.made_for is not None and time.time() - f.created_at >= ABANDONED_AFTER_SECONDS
    ]
    if not old:
        return []
    stored, damaged = await jobs.readable_and_damaged()
    named = {file_id for job in stored for file_id in (job.training_file, job.validation_file)}
    unnamed = [] if damaged else [file_id for file_id in old if file_id not in named]
    for file_id in unnamed:
        with suppress(NotFound):  # another gateway, or its owner, came first
            await files.remove(file_id)
    return unnamed
