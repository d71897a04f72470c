"""A running vLLM: its AsyncLLM, its processes, and calls to them that always end.

    call(work) ──┬── the result of `work`
                 ├── EngineFailure   as soon as the engine has ended: its process died, or it was closed
                 └── TimedOut        after the call's limit; names what was waited for

When its process dies, vLLM itself wakes waiting requests, but not waiting calls; so a watch task polls it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from headrace_core.concurrency import while_moving
from headrace_core.errors import FAILED_BY_ITSELF, TimedOut

from ..engine import EngineConfig, EngineFailure
from . import launch
from .engine_log import EngineLog
from .orphan_guard import OrphanGuard

Result = TypeVar("Result")

CALL_LIMIT = 60.0
"""Seconds a call may take; the longest regular wait is for one step to end."""
CLOSE_GRACE = 10.0
WATCH_INTERVAL = 0.2
"""Seconds between two checks of vLLM's process."""
DIED = "vLLM's engine process died; its log names the cause"


class VllmProcess:
    """A running vLLM, created by `start`; for use in one event loop."""

    def __init__(self, llm: Any, processes: set[Any], guard: OrphanGuard, log: EngineLog, drain_limit: float) -> None:
        self.llm = llm
        self._log = log
        self._guard = guard
        self._processes = processes
        self._segments = launch.shared_segments(processes)
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._drain_limit = drain_limit
        self._watcher = asyncio.create_task(self._watch(), name="vllm-watch")

    @classmethod
    async def start(cls, config: EngineConfig) -> VllmProcess:
        """Start vLLM and load the model. Raises TimeoutError after `start_timeout`, `EngineFailure` with the last error
        that its processes logged, or else what vLLM raised."""
        before, guard, log = launch.engine_processes(), OrphanGuard(), EngineLog()
        try:
            llm = await _bring_up(config, before, guard)
        except BaseException as error:
            await asyncio.to_thread(guard.release)
            ended_here = isinstance(error, TimeoutError) or not isinstance(error, Exception)
            if not ended_here and (logged := log.last_error) is not None:
                raise EngineFailure(logged, code=FAILED_BY_ITSELF) from error
            raise
        finally:
            log.release()
        return cls(llm, launch.engine_processes() - before, guard, log, config.update_timeout)

    def require_alive(self) -> None:
        """Raises `EngineFailure` if the engine has ended."""
        if self._ended.done():
            raise EngineFailure(self._ended.result())

    def end(self, reason: str) -> None:
        """Make all present and future waits raise `EngineFailure(reason)`. The first reason stays."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def call(
        self, work: Coroutine[Any, Any, Result], waiting_for: str, limit: float | None = CALL_LIMIT
    ) -> Result:
        """The result of `work`, or an error: see the module.

        `limit` None is for requests, which may queue as long as their caller wants; the watch ends them with the
        engine.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(work)
        try:
            either: set[asyncio.Future[Any]] = {task, self._ended}
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.require_alive()
            raise TimedOut(f"vLLM: no answer to {waiting_for} within {limit:.0f} s")
        except EngineDeadError as error:
            self.end(self._death())
            raise EngineFailure(self._ended.result()) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def on_workers(self, method: str, *args: Any) -> list[Any]:
        """Call `method` of the worker extension on every worker, between two steps. Returns their results."""
        return await self.call(self.llm.collective_rpc(method, args=args), method)

    async def label(self, version: int) -> None:
        """Label all tokens sampled from now on with `version`."""
        await self.call(self.llm.update_weight_version(str(version)), "the change of the version label")

    def tokens_in_flight(self) -> dict[str, int]:
        """Tokens that each running request has sampled so far, by the id under which it was submitted."""
        states = self.llm.output_processor.request_states.values()
        return {state.external_req_id: state.detokenizer.num_output_tokens() for state in states}

    @asynccontextmanager
    async def paused(self, drain: bool) -> AsyncIterator[None]:
        """Context in which no step is scheduled or in flight; with `drain`, the running requests have ended before.

        vLLM's `pause_generation` does the same and then sleeps 20 ms, which is several times the rest of an update of a
        small model. So its parts are called here.
        """
        core = self.llm.engine_core
        try:
            if drain:
                await self._drained(core.pause_scheduler_async(mode="wait", clear_cache=False))
            else:
                await self.call(core.pause_scheduler_async(mode="keep", clear_cache=False), "a pause")
            yield
            await self.call(core.resume_scheduler_async(), "the end of a pause")
        except BaseException:
            # An engine that stays paused would hang all requests; one that has ended cannot be resumed.
            if not self._ended.done():
                await self._resume_or_end()
            raise

    async def _drained(self, pause: Coroutine[Any, Any, Any]) -> None:
        """Wait for the running requests to end, as long as they sample tokens. Raises `TimedOut`."""

        async def sampled() -> dict[str, int]:
            return self.tokens_in_flight()

        limit = self._drain_limit
        try:
            await while_moving(self.call(pause, "a drain", None), limit, sampled, self.tokens_in_flight())
        except TimeoutError as error:
            raise TimedOut(f"vLLM: running requests neither ended nor sampled a token within {limit:.0f} s") from error

    async def _resume_or_end(self) -> None:
        try:
            await self.call(self.llm.engine_core.resume_scheduler_async(), "the end of a pause")
        except TimedOut as error:
            self.end(f"after an update that was given up, generation did not go on: {error}")
            raise EngineFailure(self._ended.result()) from error

    async def probe(self, limit: float) -> None:
        """Returns when the workers have answered. If they do not within `limit` seconds, raises `EngineFailure`, and so
        does every later call."""
        try:
            await self.call(self.llm.collective_rpc("headrace_stage_state"), "whether it still works", limit)
        except TimedOut as error:
            self.end(str(error))
            raise EngineFailure(str(error)) from error

    async def close(self) -> None:
        """End all waits with `EngineFailure`, all processes, and all shared memory. Idempotent."""
        self.end("the engine was closed")
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        # Requests in flight wake, abort themselves and fail before vLLM goes away under them.
        await asyncio.sleep(0)
        if self.llm is None:
            return
        context = self.llm.engine_core.resources.ctx
        await asyncio.to_thread(self.llm.shutdown)
        # vLLM gives its engine process 5 s, then kills it; workers that outlive it notice some time later.
        await asyncio.to_thread(launch.end_processes, self._processes, CLOSE_GRACE)
        # A killed engine process does not unlink its shared memory, and no tracker outlives it to do so.
        for segment in self._segments:
            segment.unlink(missing_ok=True)
        await asyncio.to_thread(self._guard.release)
        # By now vLLM has closed its sockets, but it leaves their ZeroMQ context to the garbage collector.
        context.destroy(linger=0)
        # AsyncLLM is in reference cycles, and its __del__ prints a traceback if it runs at the interpreter's exit.
        self.llm = None
        gc.collect()

    async def _watch(self) -> None:
        # vLLM only sets a flag, in a thread of its own, so it must be polled.
        while not self.llm.errored:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_INTERVAL)
        self.end(self._death())

    def _death(self) -> str:
        """Why the process died: the last error it logged, if there is one (a killed process logs none)."""
        logged = self._log.last_error
        return DIED if logged is None else f"vLLM's engine process died: {logged}"


async def _bring_up(config: EngineConfig, before: set[Any], guard: OrphanGuard) -> Any:
    """A started AsyncLLM. Raises TimeoutError after `start_timeout`; then, and if it is cancelled, the processes of the
    attempt have been ended."""
    attempt = asyncio.create_task(asyncio.to_thread(launch.start_engine, config, guard))
    try:
        done, _ = await asyncio.wait({attempt}, timeout=config.start_timeout)
    except asyncio.CancelledError:
        await _give_up(attempt, before)
        raise
    if done:
        return attempt.result()
    await _give_up(attempt, before)
    raise TimeoutError(f"not ready within {config.start_timeout:.0f} s")


async def _give_up(attempt: asyncio.Task[Any], before: set[Any]) -> None:
    """End the processes and the shared memory of a start that is given up, until it fails without them."""
    attempt.add_done_callback(_discard)
    # Repeatedly, because an attempt that still reads its configuration has not started its processes yet.
    deadline = time.monotonic() + CALL_LIMIT
    while not attempt.done() and time.monotonic() < deadline:
        processes = launch.engine_processes() - before
        segments = launch.shared_segments(processes)
        await asyncio.to_thread(launch.end_processes, processes, 0.0)
        for segment in segments:
            segment.unlink(missing_ok=True)
        await asyncio.wait({attempt}, timeout=WATCH_INTERVAL)


def _discard(attempt: asyncio.Task[Any]) -> None:
    """Shut down the engine of an attempt that succeeded after it was given up."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().shutdown()
