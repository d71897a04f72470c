"""Supervises a component of the service, its Redis or its Ray: restarts one that has failed, and emits an event to
jobs.

works ──► failed ──► wait 1 s, 2 s, 4 s … 30 s ──► start
  ▲                                                  │ no restart left (`RestartBudget`): `Unavailable`, and the service
  └── events to jobs; clients waited meanwhile ◄─────┘ ends; so does any error that a retry cannot resolve, at once
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, TypeAlias

from redis.exceptions import RedisError

from headrace_core.concurrency import cancel
from headrace_core.errors import HeadraceError, Unavailable
from headrace_core.jobs.job_store import JobStore
from headrace_core.logs import get_logger
from headrace_core.restart_budget import RestartBudget
from headrace_core.types.events import CommandLost, Restarted
from headrace_core.types.job import ENDED

LOOK_SECONDS = 0.2
Notice: TypeAlias = tuple[str, Restarted | CommandLost]
"""A message for jobs, and its data."""
log = get_logger(__name__)


class ServicePart(Protocol):
    """A component that is restarted when it fails."""

    @property
    def name(self) -> str:
        """The component's name in events."""
        ...

    async def lost(self) -> str | None:
        """Why the component has failed, such as `ended with status 1`; None while it works. Returns within seconds."""
        ...

    async def restart(self) -> None:
        """Restart the component; returns once it works. Raises `Unavailable` if it does not start, and any other error
        if a retry cannot help."""
        ...

    def notice(self) -> Notice | None:
        """A notice about the last start for the jobs, if there is one."""
        ...


class PartSupervisor:
    """Restarts one component of the service when it fails."""

    def __init__(self, part: ServicePart, jobs: JobStore, restarts: RestartBudget) -> None:
        self._part = part
        self._jobs = jobs
        self._restarts = restarts
        self._since = time.monotonic()
        self._unreported: list[Notice] = []

    async def run(self) -> None:
        """Supervise the component; never returns. Raises `Unavailable` after the last restart, and errors of
        `restart`."""
        self._take_notice()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if (cause := await self._part.lost()) is not None:
                await self._mend(cause)
            while self._unreported and await self._try_report(*self._unreported[0]):
                self._unreported.pop(0)

    async def _mend(self, cause: str) -> None:
        name, worked = self._part.name, time.monotonic() - self._since
        while True:
            restart = self._restarts.next(worked)
            if restart is None:
                raise Unavailable(f"{name} {cause}, and has used up its restarts")
            data = Restarted(name, cause, restart.number, restart.of, restart.delay)
            log.warning(
                "a part of the service is started again",
                part=name,
                cause=cause,
                restart=restart.number,
                of=restart.of,
                delay=restart.delay,
            )
            await asyncio.sleep(restart.delay)
            try:
                await self._part.restart()
            except Unavailable as error:
                cause, worked = f"did not start: {error.message}", 0.0
                continue
            break
        self._since = time.monotonic()
        after = f"was started again after {restart.delay:g} s, restart {restart.number} of {restart.of}"
        self._unreported.append((f"{name} {cause} and {after}", data))
        self._take_notice()

    def _take_notice(self) -> None:
        if (notice := self._part.notice()) is not None:
            log.warning(notice[0])
            self._unreported.append(notice)

    async def _try_report(self, message: str, data: Restarted | CommandLost) -> bool:
        """Returns False if the component failed meanwhile: reporting may need it, and would then wait for this
        supervisor."""
        reporting = asyncio.create_task(self._report(message, data))
        try:
            while not reporting.done() and await self._part.lost() is None:
                await asyncio.wait([reporting], timeout=LOOK_SECONDS)
            if reporting.done():
                reporting.result()
            return reporting.done()
        finally:
            await cancel([reporting])

    async def _report(self, message: str, data: Restarted | CommandLost) -> None:
        """Emit the event to every job that has not ended. An error does not end the supervision."""
        try:
            for job in await self._jobs.all():
                if job.status not in ENDED:
                    await self._jobs.emit_event(job.id, message, level="warn", data=data)
        except (HeadraceError, RedisError) as error:
            log.warning("jobs could not be told", message=message, error=str(error))
