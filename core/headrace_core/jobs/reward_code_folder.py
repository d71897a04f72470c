"""The folder that holds the code of a job's functions, as it was when the job was submitted.

A fork has a copy of its parent's, so that a grader that it takes over runs as it did there. The folder goes again where
the grader is refused; it stays where storing the job fails, which may have been stored all the same.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import TracebackType

import msgspec

from ..config.reward_permissions import RewardPermissions
from ..config.service_settings import Settings
from ..storage.job_folder import JobFolder
from .job_store import ForkedFrom


def folder_of(settings: Settings, job_id: str) -> Path:
    """Of one job, absolute; it need not exist."""
    return JobFolder.of(settings.data_dir, job_id).reward_code


def rules_of(settings: Settings, job_id: str) -> RewardPermissions:
    """What the operator lets rewards do, and where the job's code is."""
    return msgspec.structs.replace(settings.reward_rules, code=str(folder_of(settings, job_id)))


class RewardCode:
    """While a job's grader is tried: `async with` gives its rules, and takes its folder away again where it fails."""

    def __init__(self, settings: Settings, job_id: str, forked_from: ForkedFrom | None) -> None:
        self._settings = settings
        self._job_id = job_id
        self._parent = None if forked_from is None else forked_from.fine_tuning_job_id

    async def __aenter__(self) -> RewardPermissions:
        if self._parent is not None:
            await asyncio.to_thread(self._copy, folder_of(self._settings, self._parent))
        return rules_of(self._settings, self._job_id)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await asyncio.to_thread(self._remove)

    def _copy(self, parent: Path) -> None:
        if parent.is_dir():
            shutil.copytree(parent, folder_of(self._settings, self._job_id), dirs_exist_ok=True)

    def _remove(self) -> None:
        folder = folder_of(self._settings, self._job_id)
        if folder.exists():
            shutil.rmtree(folder)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
