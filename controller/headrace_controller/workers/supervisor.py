"""Keeps one worker of a job alive: starts it, runs it, and starts it again when its process dies or is ended.

    start ──► ready ──► waits for the others ──► works ──► returns: done
      ▲                          │                 │
      └── delay ◄── died, failed, or ended by the watchdog; after the last restart `RestartsExhausted` with the reason

A fault of the user's (`InvalidRequest`: the data, the reward) is not mended by another try, and is raised as it is; a
full disk or a full Redis is not either, and pauses the job; nor is a start that fails twice in a row with the same
error of its own, as of an engine that finds too little memory.

Invariant: before a process is started, the one before it is told to end or killed; a kill reaches a stopped one too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import cancel
from headrace_core.errors import FAILED_BY_ITSELF, HeadraceError, InvalidRequest, InvalidState, TimedOut
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.logs import get_logger
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.restart_budget import RestartBudget
from headrace_core.types.events import Restarted, WorkerReady

from ..pause_reasons import OUT_OF_SPACE, JobCannotContinue, RestartsExhausted, cannot_go_on
from ..worker_process import WorkerProcess
from .liveness import PingMonitor

STOP_SECONDS = 20.0
START_STOP_SECONDS = 5.0
CLOSE_SECONDS = 10.0
"""For a worker that failed to end what it started: an engine, reward processes."""
LOOK_SECONDS = 1.0
_FIGURES = re.compile(r"\d+")
Result = TypeVar("Result")


class WorkerKilled(HeadraceError):
    """A worker's process was ended from here, because it was of no use any more; the message says why."""

    code = "worker_ended"


class WorkerSupervisor:
    """One worker. `launch` starts a new process for it: of a learner of several ranks, all of them."""

    def __init__(
        self,
        config: WorkerConfig,
        launch: Callable[[WorkerConfig], WorkerProcess],
        jobs: JobStore,
        recoveries: RecoveryCounters,
        restarts: RestartBudget,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config, self._clock = config, clock
        self._launch = launch
        self._jobs = jobs
        self._recoveries = recoveries
        self._restarts = restarts
        self._process: WorkerProcess | None = None
        self._pulse: PingMonitor | None = None
        self._end: asyncio.Future[str] | None = None
        """Of the present process: set where it is ended from here, with the reason."""
        self._ready = asyncio.Event()
        self._ready_at = 0.0
        self._began = self._done = False
        self._start_error = ""
        """Why the last start failed, if it did, but for the figures in it, which may be of the moment."""
        self._progressed = False
        """Whether the job did since the last restart."""

    @property
    def name(self) -> str:
        """Of the worker, within its job."""
        return self._config.worker

    @property
    def ready(self) -> bool:
        """Whether its process is up and has its model."""
        return self._ready.is_set()

    @property
    def working(self) -> bool:
        """Whether it is ready, and was let begin, and is not done."""
        return self.ready and self._began and not self._done

    def silent(self) -> float:
        """Seconds for which its process, once ready, has not answered; 0 of one that is not, or is done."""
        return 0.0 if self._pulse is None or not self.ready or self._done else self._pulse.silent()

    def progressed(self) -> None:
        """The job made progress: what this worker did was of use, and it may have its restarts again."""
        self._progressed = True

    def end(self, reason: str) -> None:
        """End its process, at once, and start it again."""
        if self._end is not None and not self._end.done():
            self._end.set_result(reason)

    async def run(self, begin: asyncio.Event) -> str:
        """Start the worker, and keep it alive; from `begin` on it works. Its own answer, once it ends by itself.

        Raises `InvalidRequest`, or `JobCannotContinue` after the last restart.
        """
        while True:
            await self._start()
            try:
                answer = await self._unless_ended(self._work(self._running(), begin))
            except (RayError, WorkerKilled) as error:
                await self._died(error)
            else:
                self._done = True
                return answer

    async def until_ready(self) -> None:
        """Returns when it has started, beside `run`."""
        await self._ready.wait()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Ask the worker something, beside `run`; asked again of its successor if it dies or fails meanwhile."""
        while True:
            await self._ready.wait()
            try:
                return await self._unless_ended(self._running().call(method, *arguments))
            except (RayError, WorkerKilled) as error:
                if isinstance(cause := _cause(error), InvalidRequest):
                    raise cause from error
                if isinstance(error, RayTaskError):  # `run` cannot know what failed beside it
                    self.end(_reason(cause))
                await asyncio.sleep(LOOK_SECONDS)

    async def stop(self, limit: float = STOP_SECONDS, patience: float | None = None) -> None:
        """Let the worker end in good order, then end its process. Idempotent; where cancelled, the next call goes on.

        It has `limit` seconds; only `patience`, where that is given, as soon as it does not answer at all. One that
        loads its model, or was told to stop before, has `START_STOP_SECONDS`, and nobody is told that it was ended.
        """
        process, ready = self._process, self.ready
        self._ready.clear()
        if process is None:
            return
        stopping = asyncio.ensure_future(process.stop())
        try:
            await self._awaited(stopping, limit if ready else START_STOP_SECONDS, patience or limit)
        except (RayError, TimeoutError) as error:
            if ready:
                await self._report(f"{self.name} did not stop in good order and was ended: {_reason(error)}", "warn")
        finally:
            await cancel([stopping])
        self._process = None
        self._let_go(process)

    async def _awaited(self, stopping: asyncio.Future[None], limit: float, patience: float) -> None:
        until = self._clock.monotonic() + limit
        while not stopping.done():
            if self._clock.monotonic() > until:
                raise TimeoutError(f"it was not done within {limit:.0f} s")
            if self._pulse is not None and self._pulse.silent() > patience:
                raise TimeoutError(f"it did not answer for {patience:.0f} s")
            await asyncio.wait([stopping], timeout=LOOK_SECONDS)
        stopping.result()

    def _running(self) -> WorkerProcess:
        if self._process is None:
            raise InvalidState(f"{self.name} was stopped")
        return self._process

    async def _start(self) -> None:
        while not self.ready:
            try:
                await self._start_once()
            except (RayError, HeadraceError) as error:
                await self._died(error)

    async def _start_once(self) -> None:
        process = self._process = self._launch(self._config)
        self._end = asyncio.get_running_loop().create_future()
        limit = self._config.start_timeout + 60.0  # the worker's own limit names the cause: let it speak first
        try:
            facts = await asyncio.wait_for(self._unless_ended(process.start()), limit)
        except TimeoutError as error:
            raise TimedOut(f"{self.name} was not ready within {limit:.0f} s") from error
        self._pulse = PingMonitor(process.ping, self._clock.monotonic)
        self._ready_at, self._start_error = self._clock.monotonic(), ""
        self._ready.set()
        what = ", ".join(f"{k} {v}" for k, v in facts.items())
        await self._report(f"{self.name} is ready: {what}", data=WorkerReady(self.name, facts))

    async def _work(self, process: WorkerProcess, begin: asyncio.Event) -> str:
        """Until then it is looked after, too: what others lack to become ready may be its to give."""
        while not begin.is_set():
            await process.ping()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await begin.wait()
        self._began = True
        return await process.run()

    async def _unless_ended(self, work: Awaitable[Result]) -> Result:
        """What the process answers. Raises `WorkerKilled` where it is ended from here: a stopped one tells nobody."""
        assert self._end is not None
        task, end = asyncio.ensure_future(work), self._end
        try:
            either: set[asyncio.Future[Any]] = {task, end}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                raise WorkerKilled(end.result())
            return task.result()
        finally:
            await cancel([task])

    async def _died(self, error: Exception) -> None:
        """Make way for the next process, and wait until it is due. Raises what no restart mends."""
        worked = self._clock.monotonic() - self._ready_at if self._ready.is_set() and self._progressed else 0.0
        self._ready.clear()
        self._progressed = False
        process, self._process = self._process, None
        if process is not None:
            try:
                if isinstance(error, RayTaskError):
                    await self._close(process)
            finally:
                self._let_go(process)
        cause = _cause(error)
        if isinstance(cause, OUT_OF_SPACE):
            raise cannot_go_on(cause, self.name) from error
        if isinstance(cause, InvalidRequest | JobCannotContinue):
            raise cause
        reason = _reason(cause)
        if _is_its_own(cause) and not worked:
            same = _FIGURES.sub("#", reason)
            if same == self._start_error:
                raise RestartsExhausted(
                    f"{self.name} failed twice in the same way while it started: {reason}", self.name
                ) from error
            self._start_error = same
        restart = self._restarts.next(worked)
        if restart is None:
            raise RestartsExhausted(f"{self.name} failed and has used up its restarts: {reason}", self.name) from error
        await self._report(
            f"{self.name} failed and is started again in {restart.delay:g} s, try {restart.number} of {restart.of}: "
            f"{reason}",
            "warn",
            Restarted(self.name, reason, restart.number, restart.of, restart.delay),
        )
        await self._recoveries.count_restart(self.name)
        await asyncio.sleep(restart.delay)

    async def _close(self, process: WorkerProcess) -> None:
        """Of a worker that failed but lives: no process that it started is left."""
        try:
            await asyncio.wait_for(process.stop(), CLOSE_SECONDS)
        except (RayError, TimeoutError) as error:
            get_logger(__name__).warning("worker did not close and is killed", worker=self.name, error=_reason(error))

    def _let_go(self, process: WorkerProcess) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None
        process.kill()

    async def _report(self, message: str, level: Any = "info", data: WorkerReady | Restarted | None = None) -> None:
        await self._jobs.emit_event(self._config.job_id, message, level=level, data=data)


def _cause(error: Exception) -> Exception:
    """What a worker raised, without Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, Exception) else error


def _is_its_own(error: Exception) -> bool:
    """Whether the worker failed of itself: of nothing that was killed, and of no other part that may be back."""
    if isinstance(error, HeadraceError):
        return error.code == FAILED_BY_ITSELF
    return not isinstance(error, RayError | OSError | asyncio.CancelledError)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, WorkerKilled):
        return text
    return f"{type(error).__name__}: {text[:600]}"
