"""Changes of a job's status by its controller, while its user may cancel, pause or resume the job at any moment.

Invariant: a change by the user takes precedence. The controller's own change then raises `Cancelled` or `Paused`.
"""

from __future__ import annotations

import asyncio

from headrace_core.errors import InvalidState
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Job, JobError, PausedBy, Status


class Cancelled(Exception):
    """The user cancelled the job."""


class Paused(Exception):
    """The user paused the job."""


class StatusChanges:
    """Changes the status of one job."""

    def __init__(self, jobs: JobStore, job_id: str, poll_seconds: float) -> None:
        self._jobs, self._job_id, self._poll_seconds = jobs, job_id, poll_seconds

    async def move(self, status: Status, outcome: PausedBy | JobError | str | None = None) -> None:
        """Change the status. Raises `Cancelled` or `Paused` if the user was first, `InvalidState` if impossible."""
        try:
            await self._jobs.move(self._job_id, status, outcome)
        except InvalidState:
            now = await self._jobs.get(self._job_id)
            check_wanted(now)
            if now.status == "queued":  # paused and resumed between two polls: it never stopped
                await self.move("running")
                await self.move(status, outcome)
            elif now.status != status:
                raise

    async def until_cancelled(self) -> None:
        """Poll the status; never returns. Raises `Cancelled` once the job is cancelled."""
        while True:
            if (await self._jobs.get(self._job_id)).status == "cancelled":
                raise Cancelled
            await asyncio.sleep(self._poll_seconds)


def check_wanted(job: Job) -> None:
    """Raises `Cancelled` or `Paused` if the job is."""
    if job.status == "cancelled":
        raise Cancelled
    if job.status == "paused":
        raise Paused
