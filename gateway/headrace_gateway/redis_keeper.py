"""Keeps the embedded Redis alive: one that dies alone is started again, on the same socket and append-only file.

    start ──► answers ──► died ──► wait 1 s, 2 s, 4 s … 30 s ──► start
                 ▲                                                 │ at most `max_restarts` in a row, or not to be
                 └── jobs are told; clients waited meanwhile ◄─────┘ read: `Unavailable` or `Damaged`, the service ends

Invariant: one that then ran for `steady` seconds has all its restarts again; what is damaged is not tried twice.
"""

from __future__ import annotations

import asyncio
import signal
import time

import structlog
from redis.exceptions import RedisError

from headrace_core.concurrency import cancel
from headrace_core.errors import HeadraceError, Unavailable
from headrace_core.jobs import ENDED, JobStore

from .redis_server import RedisServer

LOOK_SECONDS = 0.2
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0
log = structlog.get_logger(__name__)


class RedisKeeper:
    """One server's. To be run in the thread that started it."""

    def __init__(
        self, server: RedisServer, jobs: JobStore, max_restarts: int, steady: float, first_delay: float = _FIRST_DELAY
    ) -> None:
        self._server = server
        self._jobs = jobs
        self._most, self._steady = max_restarts, steady
        self._first_delay = first_delay
        self._restarts = 0
        self._since = time.monotonic()
        self._untold: list[tuple[str, dict[str, object]]] = []

    async def run(self) -> None:
        """For as long as the service runs. Raises `Unavailable` after the last restart, `Damaged`."""
        if (cut := self._server.cut) is not None:
            self._tell_of_cut(cut)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._server.alive:
                await self._mend(_cause(self._server.exit_status))
            while self._untold and await self._told(*self._untold[0]):
                self._untold.pop(0)

    async def _mend(self, cause: str) -> None:
        if time.monotonic() - self._since > self._steady:
            self._restarts = 0
        while True:
            if self._restarts == self._most:
                raise Unavailable(f"the embedded Redis {cause}, and has used up its {self._most} restarts")
            delay = min(_LONGEST_DELAY, self._first_delay * 2**self._restarts)
            self._restarts += 1
            facts = {"cause": cause, "restart": self._restarts, "of": self._most, "delay": delay}
            log.warning("Redis is started again", **facts)
            await asyncio.sleep(delay)
            self._server.launch()
            try:
                await asyncio.to_thread(self._server.wait_until_ready)
            except Unavailable as error:
                cause = f"did not start: {error.message}"
                continue
            break
        self._since = time.monotonic()
        again = f"redis {cause} and was started again after {delay:g} s, restart {self._restarts} of {self._most}"
        self._untold.append((again, {"worker": "redis", **facts}))
        if (cut := self._server.cut) is not None:
            self._tell_of_cut(cut)

    def _tell_of_cut(self, cut: str) -> None:
        log.warning("Redis left out the end of its append-only file", where=cut)
        message = f"redis left out the last command, not wholly written: {cut}"
        self._untold.append((message, {"worker": "redis", "cut": cut}))

    async def _told(self, message: str, data: dict[str, object]) -> bool:
        """False where Redis died meanwhile: telling would wait for who is to start it again, which is this keeper."""
        telling = asyncio.create_task(self._tell(message, data))
        try:
            while self._server.alive and not telling.done():
                await asyncio.wait([telling], timeout=LOOK_SECONDS)
            if telling.done():
                telling.result()
            return telling.done()
        finally:
            await cancel([telling])

    async def _tell(self, message: str, data: dict[str, object]) -> None:
        """Every job that has not ended; one that cannot be told does not keep Redis from being kept alive."""
        try:
            for job in await self._jobs.all():
                if job.status not in ENDED:
                    await self._jobs.tell(job.id, message, level="warn", data=data)
        except (HeadraceError, RedisError) as error:
            log.warning("jobs could not be told", message=message, error=str(error))


def _cause(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
