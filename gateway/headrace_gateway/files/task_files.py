"""`reasoning_gym:chain_sum?size=1000` where a file is asked for: its rows, made once and kept as a file like any other.

reference ─► a process of the rewards service ─► temporary file ─► FileStore ─► its id, which the job then names
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import RowsReport, RowsRequest
from headrace_core.storage.dataset import names_task

from ..limited_processes.json_process import ask_rewards
from ..limited_processes.process_slots import Places
from .file_store import FileStore

TASK_SECONDS = 300.0
AT_ONCE = 2
"""Of one gateway: each is a process that imports a library of tasks, with a sandbox, and writes a file."""


def task_places() -> Places:
    """Of one gateway, for all its requests."""
    return Places(AT_ONCE, TASK_SECONDS, f"the rows of {AT_ONCE} other tasks are being made")


class TaskFiles:
    """The files that one request needs made. `async with`: a request that is refused leaves none."""

    def __init__(self, files: FileStore, folder: Path, rules: RewardPermissions, places: Places) -> None:
        """`folder` takes what is not whole yet; `rules` hold the libraries as they hold reward code."""
        self._files = files
        self._places = places
        self._rules = rules
        self._folder = folder
        self._made: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for file_id in self._made:
                await self._files.remove(file_id)

    async def file_id(self, reference: str, param: str) -> str:
        """The id of the file with the rows of a task; what is no task is given back. Raises `InvalidRequest`,
        and `TimedOut` where others were being made all the time."""
        if not names_task(reference):
            return reference
        self._folder.mkdir(parents=True, exist_ok=True)
        async with self._places.one():
            with tempfile.TemporaryDirectory(prefix=".task-", dir=self._folder) as folder:
                path = Path(folder) / "rows.jsonl"
                question = RowsRequest(reference, str(path.absolute()), self._files.max_bytes, self._rules)
                made = await ask_rewards(
                    "tasks",
                    question,
                    RowsReport,
                    seconds=TASK_SECONDS,
                    what=f"making the rows of {reference}",
                    param=param,
                )
                if made.error is not None:
                    raise InvalidRequest(f"{param}: {made.error.message}", param=param, code=made.error.code)
                with path.open("rb") as source:
                    stored = await self._files.add(source, f"{reference}.jsonl", "fine-tune")
        self._made.append(stored.id)
        return stored.id
