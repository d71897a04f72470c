"""The folder with the code of a job's reward functions, as it was when the job was submitted.

    jobs/<job>/.submitting ──► reward_code ──► grader checked ──► job stored ──► .submitting removed
                                                    │ refused          │ refused by Redis
                                                    └──────────────────┴──► the whole folder is removed

A fork copies its parent's code, so that a grader it inherits runs as it did there. A `.submitting` mark that remains
was left by a gateway that died, or that got no answer from Redis: the job may have been stored, so the code stays until
Redis can be asked (`sweep`).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import msgspec
from redis.exceptions import ResponseError

from ..config.reward_permissions import RewardPermissions
from ..config.service_settings import Settings
from ..errors import Damaged, NotFound
from ..storage.atomic_write import ABANDONED_AFTER_SECONDS
from ..storage.job_folder import JobFolder
from ..types.job import ForkedFrom, Job
from .job_store import JobStore

_SUBMITTING = ".submitting"


def folder_of(settings: Settings, job_id: str) -> Path:
    """The code folder of one job, as an absolute path; it need not exist."""
    return JobFolder.of(settings.data_dir, job_id).reward_code


def rules_of(settings: Settings, job_id: str) -> RewardPermissions:
    """The operator's permissions for rewards, with the job's code folder filled in."""
    return msgspec.structs.replace(settings.reward_rules, code=str(folder_of(settings, job_id)))


class RewardCode:
    """Holds a job's code folder during submission (`async with`). A failed submission removes the folder, unless
    another submission uses the same job id."""

    def __init__(
        self,
        settings: Settings,
        job_id: str,
        forked_from: ForkedFrom | None,
        is_alone: Callable[[], Awaitable[bool]],
    ) -> None:
        """`is_alone` tells whether no job and no other submission has this id. If one has, a failed submission leaves
        the folder, marked `.submitting`."""
        self._is_alone = is_alone
        self.rules = rules_of(settings, job_id)
        self._folder = folder_of(settings, job_id)
        parent = None if forked_from is None else forked_from.fine_tuning_job_id
        self._parent = None if parent is None else folder_of(settings, parent)
        self._stored: bool | None = False
        """None: Redis was asked to store the job, but did not answer."""

    async def __aenter__(self) -> RewardCode:
        await asyncio.to_thread(self._begin)
        return self

    async def store(self, jobs: JobStore, job: Job) -> bool:
        """Store the job; its code folder stays from here on.

        False if another submission has stored a job with the same id, which uses the same folder.
        """
        self._stored = None
        try:
            created = await jobs.create(job)
        except ResponseError:  # Redis answered: the job is not stored
            self._stored = False
            raise
        self._stored = True
        return created

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stored or (self._stored is False and await self._is_alone()):
            await asyncio.to_thread(_settle, self._folder, self._stored)

    def _begin(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        (self._folder.parent / _SUBMITTING).touch()
        if self._parent is not None and self._parent.is_dir():
            shutil.copytree(self._parent, self._folder, dirs_exist_ok=True)


async def sweep(data_dir: Path, jobs: JobStore) -> list[Path]:
    """Finish abandoned submissions: remove the code of those whose job was not stored. Returns the folders removed.

    Only marks older than `ABANDONED_AFTER_SECONDS` count as abandoned. `jobs` must see the jobs of all owners. Raises
    `RedisError` if Redis cannot be asked.
    """
    removed = []
    for mark in await asyncio.to_thread(_old_marks, data_dir):
        stored = True
        try:
            await jobs.status(mark.parent.name)
        except NotFound:
            stored = False
        except Damaged:  # a damaged record is a stored job
            pass
        await asyncio.to_thread(_settle, JobFolder(mark.parent).reward_code, stored)
        if not stored:
            removed.append(mark.parent)
    return removed


def _old_marks(data_dir: Path) -> list[Path]:
    found = []
    for mark in (data_dir / "jobs").glob(f"*/{_SUBMITTING}"):
        try:
            if time.time() - mark.stat().st_mtime >= ABANDONED_AFTER_SECONDS:
                found.append(mark)
        except FileNotFoundError:  # just stored
            continue
    return found


def _settle(folder: Path, stored: bool) -> None:
    """Remove the code unless the job is `stored`, then the mark, then the job's folder if it is empty.

    The mark is removed after the code, so that a process killed in between leaves it for `sweep`.
    """
    if not stored and folder.exists():
        shutil.rmtree(folder)
    (folder.parent / _SUBMITTING).unlink(missing_ok=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
