"""Supervises one worker of a job: starts it, runs it, and restarts it when its process dies or is killed.

    start ──► ready ──► waits for the others ──► works ──► returns: done
      ▲                          │                 │
      └── delay ◄── died, failed, or killed by the watchdog; after the last restart `RestartsExhausted` with the reason

Three failures are not retried, because a restart cannot resolve them. An error of the user (`InvalidRequest`: the data,
the reward) is raised as it is. A full disk or a full Redis pauses the job. So does a worker that fails twice in a row
with the same error of its own while it starts, such as an engine that finds too little memory.

Invariant: before a new process is started, the old one was told to stop or was killed; the kill reaches a stopped
process (SIGSTOP) too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import cancel, while_moving
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
START_MARGIN_SECONDS = 60.0
"""Time for a start beyond the worker's own limit, whose error names the cause."""
CLOSE_SECONDS = 10.0
"""Time for a worker that failed to end the processes that it started: an engine, reward processes."""
POLL_SECONDS = 1.0
_NUMBERS = re.compile(r"\d+")
Result = TypeVar("Result")


class WorkerKilled(HeadraceError):
    """The supervisor killed the worker's process. The message says why."""

    code = "worker_ended"


class WorkerSupervisor:
    """Supervisor of one worker. `launch` starts its process; for a learner of several ranks, all of them."""

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
        self._pings: PingMonitor | None = None
        self._kill_requested: asyncio.Future[str] | None = None
        """Set to the reason when `end` wants the present process killed."""
        self._ready = asyncio.Event()
        self._ready_at = 0.0
        self._begun = self._done = False
        self._start_error = ""
        """Why the last start failed, with numbers masked, since they may differ between two starts; empty if it
        succeeded."""
        self._progressed = False
        """Whether the job made progress since this worker's last restart."""

    @property
    def name(self) -> str:
        """The worker's name within its job: `learner`, `rollout-0`, …"""
        return self._config.worker

    @property
    def ready(self) -> bool:
        """Whether the worker's process runs and has loaded its model."""
        return self._ready.is_set()

    @property
    def working(self) -> bool:
        """True between `begin` and the end of `run`, except while the worker restarts."""
        return self.ready and self._begun and not self._done

    def silent(self) -> float:
        """Seconds for which the worker's process has not answered; 0 if it is not ready yet, or done."""
        return 0.0 if self._pings is None or not self.ready or self._done else self._pings.silent()

    def progressed(self) -> None:
        """Called when the job makes progress: the worker's time since its last restart then counts as time in which it
        worked, so that it can get its restarts back."""
        self._progressed = True

    def end(self, reason: str) -> None:
        """Have the worker's process killed and started again. Returns at once."""
        if self._kill_requested is not None and not self._kill_requested.done():
            self._kill_requested.set_result(reason)

    async def run(self, begin: asyncio.Event) -> str:
        """Start the worker and keep it running; it works once `begin` is set. Returns the worker's own result when it
        ends by itself.

        Raises `InvalidRequest`, or `JobCannotContinue` after the last restart.
        """
        while True:
            await self._start()
            try:
                answer = await self._unless_killed(self._work(self._current_process(), begin))
            except (RayError, WorkerKilled) as error:
                await self._recover(error)
            else:
                self._done = True
                return answer

    async def until_ready(self) -> None:
        """Returns when the worker is ready; called beside `run`."""
        await self._ready.wait()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker, beside `run`. If the worker dies or fails, the call is repeated with its
        successor. Raises `InvalidRequest`."""
        while True:
            await self._ready.wait()
            try:
                return await self._unless_killed(self._current_process().call(method, *arguments))
            except (RayError, WorkerKilled) as error:
                if isinstance(cause := _cause(error), InvalidRequest):
                    raise cause from error
                if isinstance(error, RayTaskError):  # `run` does not see an error of a call beside it
                    self.end(_reason(cause))
                await asyncio.sleep(POLL_SECONDS)

    async def stop(
        self, limit: float = STOP_SECONDS, patience: float | None = None, while_computing: bool = False
    ) -> None:
        """Let the worker stop in good order, then kill its process. Idempotent; after a cancellation, the next call
        continues.

        The worker has `limit` seconds, but only `patience` seconds (if given) from its last answer to a ping. With
        `while_computing`, the limit begins again as long as the worker computes tokens within each. A worker
        that still loads its model, or was told to stop before, has `START_STOP_SECONDS`, and no event reports that it
        was killed.
        """
        process, ready = self._process, self.ready
        self._ready.clear()
        if process is None:
            return
        stopping = asyncio.ensure_future(process.stop())
        try:
            if not ready:
                limit, while_computing = START_STOP_SECONDS, False
            await self._wait_for_stop(stopping, limit, patience or limit, while_computing)
        except (RayError, TimeoutError) as error:
            if ready:
                await self._report(f"{self.name} did not stop in good order and was ended: {_reason(error)}", "warn")
        finally:
            await cancel([stopping])
        self._process = None
        self._kill(process)

    async def _wait_for_stop(
        self, stopping: asyncio.Future[None], limit: float, patience: float, while_computing: bool
    ) -> None:
        until = self._clock.monotonic() + limit
        computed = await self._computed_tokens() if while_computing else 0
        while not stopping.done():
            if self._clock.monotonic() > until:
                before, computed = computed, await self._computed_tokens() if while_computing else 0
                if computed == before:
                    raise TimeoutError(f"it was not done within {limit:.0f} s")
                until = self._clock.monotonic() + limit
            if self._pings is not None and self._pings.silent() > patience:
                raise TimeoutError(f"it did not answer for {patience:.0f} s")
            await asyncio.wait([stopping], timeout=POLL_SECONDS)
        stopping.result()

    def _current_process(self) -> WorkerProcess:
        if self._process is None:
            raise InvalidState(f"{self.name} was stopped")
        return self._process

    async def _start(self) -> None:
        while not self.ready:
            try:
                await self._start_once()
            except (RayError, HeadraceError) as error:
                await self._recover(error)

    async def _start_once(self) -> None:
        process = self._process = self._launch(self._config)
        self._kill_requested = asyncio.get_running_loop().create_future()
        facts = await self._unless_killed(self._ready_facts(process.start()))
        self._pings = PingMonitor(process.ping, self._clock.monotonic)
        self._ready_at, self._start_error = self._clock.monotonic(), ""
        self._ready.set()
        what = ", ".join(f"{k} {v}" for k, v in facts.items())
        await self._report(f"{self.name} is ready: {what}", data=WorkerReady(self.name, facts))

    async def _ready_facts(self, start: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """The result of a worker's `start`. Raises `TimedOut` if it takes longer than its limit without computing a
        token: a learner that replays steps may need much longer."""
        limit = self._config.start_timeout + START_MARGIN_SECONDS
        try:
            return await while_moving(start, limit, self._computed_tokens, 0)
        except TimeoutError as error:
            raise TimedOut(f"{self.name} was not ready within {limit:.0f} s") from error

    async def _computed_tokens(self) -> int:
        """Tokens that the worker has computed, by its newest heartbeat; 0 without one."""
        beats = await self._jobs.workers(self._config.job_id)
        return next((beat.computed_tokens for beat in beats if beat.worker == self.name), 0)

    async def _work(self, process: WorkerProcess, begin: asyncio.Event) -> str:
        """Wait for `begin`, then run the worker. Meanwhile pings notice its death: it has to be restarted even before
        `begin`, since the other workers may need it to become ready."""
        while not begin.is_set():
            await process.ping()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await begin.wait()
        self._begun = True
        return await process.run()

    async def _unless_killed(self, work: Awaitable[Result]) -> Result:
        """The result of `work`, a call to the process. Raises `WorkerKilled` once `end` is called: a stopped process
        would never answer."""
        assert self._kill_requested is not None
        task, end = asyncio.ensure_future(work), self._kill_requested
        try:
            either: set[asyncio.Future[Any]] = {task, end}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                raise WorkerKilled(end.result())
            return task.result()
        finally:
            await cancel([task])

    async def _recover(self, error: Exception) -> None:
        """Kill the process that failed, and wait until its restart is due. Raises errors that no restart resolves."""
        worked = self._clock.monotonic() - self._ready_at if self._ready.is_set() and self._progressed else 0.0
        self._ready.clear()
        self._progressed = False
        process, self._process = self._process, None
        if process is not None:
            try:
                if isinstance(error, RayTaskError):
                    await self._close(process)
            finally:
                self._kill(process)
        cause = _cause(error)
        if isinstance(cause, OUT_OF_SPACE):
            raise cannot_go_on(cause, self.name) from error
        if isinstance(cause, InvalidRequest | JobCannotContinue):
            raise cause
        reason = _reason(cause)
        if _failed_by_itself(cause) and not worked:
            same = _NUMBERS.sub("#", reason)
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
        """Let a worker that failed, but is alive, end the processes that it started."""
        try:
            await asyncio.wait_for(process.stop(), CLOSE_SECONDS)
        except (RayError, TimeoutError) as error:
            get_logger(__name__).warning("worker did not close and is killed", worker=self.name, error=_reason(error))

    def _kill(self, process: WorkerProcess) -> None:
        if self._pings is not None:
            self._pings.stop()
            self._pings = None
        process.kill()

    async def _report(self, message: str, level: Any = "info", data: WorkerReady | Restarted | None = None) -> None:
        await self._jobs.emit_event(self._config.job_id, message, level=level, data=data)


def _cause(error: Exception) -> Exception:
    """The error that the worker raised, unwrapped from Ray's."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, Exception) else error


def _failed_by_itself(error: Exception) -> bool:
    """Whether the cause is the worker itself: no process was killed, and no other service was unavailable, which a
    restart may find working again."""
    if isinstance(error, HeadraceError):
        return error.code == FAILED_BY_ITSELF
    return not isinstance(error, RayError | OSError | asyncio.CancelledError)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, WorkerKilled):
        return text
    return f"{type(error).__name__}: {text[:600]}"
