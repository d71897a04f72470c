"""Keeps one worker of a job alive: starts it, runs it, and starts it again when its process dies.

    start ──► ready ──► run ──► returns: done
      ▲                  │
      └── backoff ◄── died or failed, at most `max_restarts` times, then `GaveUp` with the reason

A fault of the user's (`InvalidRequest`: the data, the reward) is not mended by another try, and is raised as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from headrace_core.errors import HeadraceError, InvalidRequest, InvalidState, TimedOut
from headrace_core.jobs import JobStore
from headrace_core.workers import WorkerConfig

from .placement import Process

BACKOFF_SECONDS = 1.0
STOP_SECONDS = 20.0


class GaveUp(HeadraceError):
    """A worker failed more often than it may be restarted; the message ends with the last reason."""

    code = "worker_failed"


class Supervisor:
    """One worker. `launch` starts a new process for it: of a learner of several ranks, all of them."""

    def __init__(
        self, config: WorkerConfig, launch: Callable[[WorkerConfig], Process], jobs: JobStore, max_restarts: int
    ) -> None:
        self._config = config
        self._launch = launch
        self._jobs = jobs
        self._restarts_left = max_restarts
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._supervised = False

    @property
    def name(self) -> str:
        """Of the worker, within its job."""
        return self._config.worker

    @property
    def ready(self) -> bool:
        """Whether its process is up and has its model."""
        return self._ready.is_set()

    async def start(self) -> None:
        """Returns when the worker is ready. Raises `InvalidRequest`, or `GaveUp` after the last restart."""
        while not self._ready.is_set():
            try:
                await self._start_once()
            except (RayError, HeadraceError) as error:
                await self._died(error)

    async def run(self) -> str:
        """The worker's own answer, once it ends by itself."""
        self._supervised = True
        while True:
            await self.start()
            try:
                return await self._running().run()
            except RayError as error:
                await self._died(error)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Ask the worker something, after `start`; asked again of its successor if it dies meanwhile.

        `run` starts the successor where it is under way, else this does: a wait for what nobody starts would not end.
        """
        while True:
            await self._ready.wait()
            try:
                return await self._running().call(method, *arguments)
            except RayActorError as error:
                if self._supervised:
                    await asyncio.sleep(BACKOFF_SECONDS)
                else:
                    await self._died(error)
                    await self.start()
            except RayTaskError as error:
                raise _cause(error) from error

    async def stop(self, limit: float = STOP_SECONDS) -> None:
        """Let the worker end in good order, for `limit` seconds, then end its process. Idempotent."""
        process, self._process = self._process, None
        self._ready.clear()
        if process is None:
            return
        try:
            await asyncio.wait_for(process.stop(), limit)
        except (RayError, TimeoutError) as error:
            await self._tell(f"{self.name} did not stop in good order and was ended: {_reason(error)}", "warn")
        process.kill()

    def _running(self) -> Process:
        if self._process is None:
            raise InvalidState(f"{self.name} was stopped")
        return self._process

    async def _start_once(self) -> None:
        process = self._process = self._launch(self._config)
        limit = self._config.start_timeout + 60.0  # the worker's own limit names the cause: let it speak first
        try:
            facts = await asyncio.wait_for(process.start(), limit)
        except TimeoutError as error:
            raise TimedOut(f"{self.name} was not ready within {limit:.0f} s") from error
        self._ready.set()
        await self._tell(f"{self.name} is ready: " + ", ".join(f"{k} {v}" for k, v in facts.items()))

    async def _died(self, error: Exception) -> None:
        self._ready.clear()
        if self._process is not None:
            self._process.kill()
            self._process = None
        cause = _cause(error)
        if isinstance(cause, InvalidRequest):
            raise cause
        if self._restarts_left == 0:
            raise GaveUp(f"{self.name} failed and has used up its restarts: {_reason(cause)}") from error
        self._restarts_left -= 1
        await self._tell(f"{self.name} failed and is started again: {_reason(cause)}", "warn")
        await asyncio.sleep(BACKOFF_SECONDS)

    async def _tell(self, message: str, level: Any = "info") -> None:
        await self._jobs.tell(self._config.job_id, message, level=level)


def _cause(error: Exception) -> Exception:
    """What a worker raised, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, Exception) else error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:600]}"
