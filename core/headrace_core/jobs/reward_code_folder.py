"""The folder that holds the code of a job's functions, as it was when the job was submitted.

    jobs/<job>/.submitting ──► reward_code ──► the grader is tried ──► the job is stored ──► .submitting goes
                                                    │ refused                │ refused by Redis
                                                    └────────────────────────┴──► all of it goes

A fork has a copy of its parent's, so that a grader that it takes over runs as it did there. What is left `.submitting`
is of a gateway that died, or that Redis did not answer: the job may have been stored all the same, so the code stays
until Redis says (`sweep`).
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
from ..storage.atomic_write import OLD_SECONDS
from ..storage.job_folder import JobFolder
from .job_store import ForkedFrom, Job, JobStore

_SUBMITTING = ".submitting"


def folder_of(settings: Settings, job_id: str) -> Path:
    """Of one job, absolute; it need not exist."""
    return JobFolder.of(settings.data_dir, job_id).reward_code


def rules_of(settings: Settings, job_id: str) -> RewardPermissions:
    """What the operator lets rewards do, and where the job's code is."""
    return msgspec.structs.replace(settings.reward_rules, code=str(folder_of(settings, job_id)))


class RewardCode:
    """While a job is submitted: `async with`. What fails takes the folder away again, but not that of another."""

    def __init__(
        self,
        settings: Settings,
        job_id: str,
        forked_from: ForkedFrom | None,
        is_alone: Callable[[], Awaitable[bool]],
    ) -> None:
        """`is_alone`: whether this submission alone is at work under the id, and no job has it; what is not, is left
        `.submitting`."""
        self._is_alone = is_alone
        self.rules = rules_of(settings, job_id)
        self._folder = folder_of(settings, job_id)
        parent = None if forked_from is None else forked_from.fine_tuning_job_id
        self._parent = None if parent is None else folder_of(settings, parent)
        self._stored: bool | None = False
        """None: Redis was asked to store the job, and did not answer."""

    async def __aenter__(self) -> RewardCode:
        await asyncio.to_thread(self._begin)
        return self

    async def store(self, jobs: JobStore, job: Job) -> bool:
        """Store the job, whose code is kept from here on. False where another submission under the same id has stored
        its own: the folder is that one's, too."""
        self._stored = None
        try:
            created = await jobs.create(job)
        except ResponseError:  # an answer: it is not stored
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
    """Settle what was left `.submitting`, once it is old; the folders that went. Raises `RedisError`: nothing is known
    then. `jobs` sees those of every user."""
    gone = []
    for mark in await asyncio.to_thread(_old_marks, data_dir):
        stored = True
        try:
            await jobs.status(mark.parent.name)
        except NotFound:
            stored = False
        except Damaged:  # it is stored
            pass
        await asyncio.to_thread(_settle, JobFolder(mark.parent).reward_code, stored)
        if not stored:
            gone.append(mark.parent)
    return gone


def _old_marks(data_dir: Path) -> list[Path]:
    found = []
    for mark in (data_dir / "jobs").glob(f"*/{_SUBMITTING}"):
        try:
            if time.time() - mark.stat().st_mtime >= OLD_SECONDS:
                found.append(mark)
        except FileNotFoundError:  # just stored
            continue
    return found


def _settle(folder: Path, stored: bool) -> None:
    """The mark goes last, so that one who dies here leaves it; with the job's own folder, where that is empty."""
    if not stored and folder.exists():
        shutil.rmtree(folder)
    (folder.parent / _SUBMITTING).unlink(missing_ok=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
