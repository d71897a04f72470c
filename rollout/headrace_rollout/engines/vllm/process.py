"""A running vLLM: its AsyncLLM, the processes under it, and calls into them that always end.

    call(work) ──┬── work's result
                 ├── EngineFailure   as soon as the engine has ended: its process died (a watch looks), or it was closed
                 └── TimedOut        after the call's limit, naming what was waited for

vLLM itself wakes those who wait on a request when its process dies, but not those who wait on a call.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

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
"""Seconds between two looks at vLLM's process."""
DIED = "vLLM's engine process died; its log names the cause"


class VllmProcess:
    """See the module docstring. Made by `start`; one event loop's."""

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
        """vLLM with its model loaded; raises TimeoutError after `start_timeout`, what vLLM raised, or `EngineFailure`
        with the last error that its processes logged."""
        before, guard, log = launch.engine_processes(), OrphanGuard(), EngineLog()
        try:
            llm = await _bring_up(config, before, guard)
        except BaseException as error:
            await asyncio.to_thread(guard.release)
            ended_here = isinstance(error, TimeoutError) or not isinstance(error, Exception)
            if not ended_here and (said := log.last_error) is not None:
                raise EngineFailure(said, code=FAILED_BY_ITSELF) from error
            raise
        finally:
            log.release()
        return cls(llm, launch.engine_processes() - before, guard, log, config.update_timeout)

    def require_alive(self) -> None:
        if self._ended.done():
            raise EngineFailure(self._ended.result())

    def end(self, reason: str) -> None:
        """Wake all who wait, now and from now on, with `EngineFailure(reason)`. The first reason stays."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def call(
        self, work: Coroutine[Any, Any, Result], waiting_for: str, limit: float | None = CALL_LIMIT
    ) -> Result:
        """`work`'s result, or an error: see the module docstring.

        Only a request has no limit: how long it queues is its caller's choice, and the watch ends it with the engine.
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
        """`method` of the worker extension, on every worker, between two steps: their results."""
        return await self.call(self.llm.collective_rpc(method, args=args), method)

    async def label(self, version: int) -> None:
        """Put `version` on every token of the steps from now on."""
        await self.call(self.llm.update_weight_version(str(version)), "the change of the version label")

    @asynccontextmanager
    async def paused(self, drain: bool) -> AsyncIterator[None]:
        """No step is scheduled or in flight inside; with `drain`, the running requests have ended.

        vLLM's `pause_generation` does the same and then sleeps 20 ms, several times the rest of an update of a small
        model; hence its parts, from the engine client.
        """
        core = self.llm.engine_core
        mode, limit = ("wait", self._drain_limit) if drain else ("keep", CALL_LIMIT)
        try:
            await self.call(core.pause_scheduler_async(mode=mode, clear_cache=False), f"a pause ({mode})", limit)
            yield
            await self.call(core.resume_scheduler_async(), "the end of a pause")
        except BaseException:
            # An engine left paused would hang every request; one that has ended is past help.
            if not self._ended.done():
                await self._resume_or_end()
            raise

    async def _resume_or_end(self) -> None:
        try:
            await self.call(self.llm.engine_core.resume_scheduler_async(), "the end of a pause")
        except TimedOut as error:
            self.end(f"after an update that was given up, generation did not go on: {error}")
            raise EngineFailure(self._ended.result()) from error

    async def probe(self, limit: float) -> None:
        """Returns when the workers have answered; raises `EngineFailure`, now and from now on, where they do not."""
        try:
            await self.call(self.llm.collective_rpc("headrace_stage_state"), "whether it still works", limit)
        except TimedOut as error:
            self.end(str(error))
            raise EngineFailure(str(error)) from error

    async def close(self) -> None:
        """Fail who waits, and leave no process and no shared memory. Idempotent."""
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
        # By now vLLM has closed its sockets, on this loop; the context of them it leaves to the garbage collector.
        context.destroy(linger=0)
        # It sits in reference cycles, and its __del__ fails with a traceback if left to the interpreter's exit.
        self.llm = None
        gc.collect()

    async def _watch(self) -> None:
        # vLLM sets a flag, from a thread of its own, and tells nobody.
        while not self.llm.errored:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_INTERVAL)
        self.end(self._death())

    def _death(self) -> str:
        """The engine's own last word, where it had one: a kill leaves none."""
        said = self._log.last_error
        return DIED if said is None else f"vLLM's engine process died: {said}"


async def _bring_up(config: EngineConfig, before: set[Any], guard: OrphanGuard) -> Any:
    """A started AsyncLLM; raises TimeoutError after `start_timeout`. Then, and where it is cancelled, the processes of
    the attempt have been ended."""
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
    """End the processes of an attempt, and the memory that they share, until it fails for want of them."""
    attempt.add_done_callback(_discard)
    # One that still reads its configuration has yet to start its process.
    deadline = time.monotonic() + CALL_LIMIT
    while not attempt.done() and time.monotonic() < deadline:
        processes = launch.engine_processes() - before
        segments = launch.shared_segments(processes)
        await asyncio.to_thread(launch.end_processes, processes, 0.0)
        for segment in segments:
            segment.unlink(missing_ok=True)
        await asyncio.wait({attempt}, timeout=WATCH_INTERVAL)


def _discard(attempt: asyncio.Task[Any]) -> None:
    """End the engine of an attempt that came too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().shutdown()
