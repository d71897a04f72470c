"""An event loop for simulated processes, with virtual time; processes can be killed, stopped and continued.

    task, timer ──► call_soon, call_at ──► its process (a context variable) ─┬─ running:  runs in its turn
                                                                             ├─ stopped:  parked until it continues
                                                                             └─ dead:     its tasks are cancelled

Invariants: the order of execution depends on nothing external (no socket, no thread, no real time), so that the same
seed gives the same run. A stopped process runs nothing; what was due meanwhile runs when it continues. Nothing that a
dead process does while its tasks unwind reaches the world, because every access to the world calls `Process.check`.
Several loops may run alternately in one thread: `pump` returns whenever the world has to answer a call.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from headrace_lab.virtual.virtual_time import done_at_once


class Process:
    """One simulated process. A restarted one is a new `Process`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = self.stopped = False
        self.offset = 0.0
        """Seconds by which its wall clock is ahead of the world's; timers do not depend on it."""
        self.port: Any = None
        """Its Redis client; and the world it belongs to."""
        self.world: Any = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.parked: list[Handle] = []

    def check(self) -> None:
        """Raises `CancelledError` if the process is dead. Every access to the world calls it first."""
        if self.dead:
            raise asyncio.CancelledError(f"{self.name} is dead")


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def here() -> Process:
    """The process whose code is running."""
    process = PROCESS.get()
    assert process is not None
    return process


class Handle:
    """A callback to run, now or at its time: the part of asyncio's handles that tasks and timeouts use, at half the
    cost."""

    __slots__ = ("_args", "_callback", "_when", "context", "off")

    def __init__(
        self, callback: Callable[..., object], args: Any, context: contextvars.Context | None, when: float = 0.0
    ) -> None:
        self._callback, self._args, self._when = callback, args, when
        self.context = context
        """None: it belongs to no process."""
        self.off = False
        """Whether it was cancelled."""

    def cancel(self) -> None:
        """Cancel it; a timer stays in the heap, and is skipped when its time comes."""
        self.off = True

    def cancelled(self) -> bool:
        return self.off

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if self.context is None:
            self._callback(*self._args)
        else:
            self.context.run(self._callback, *self._args)


class Stalled(Exception):
    """All tasks are waiting, and no timer is set."""


def _own(context: contextvars.Context | None) -> contextvars.Context:
    """The given context, or a copy of the caller's, as in asyncio."""
    return contextvars.copy_context() if context is None else context


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The part of an event loop that asyncio's tasks, futures and timers need, in virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        """The world's time, seconds."""
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        self._wanted = False
        self._tasks: list[asyncio.Task[Any]] = []

    # ── what asyncio asks of a loop ──────────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, _own(context))
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        return self._timer(self.now + delay, callback, args, _own(context))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        return self._timer(when, callback, args, _own(context))

    def _timer(
        self, when: float, callback: Callable[..., object], args: Any, context: contextvars.Context | None
    ) -> Handle:
        handle = Handle(callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coroutine: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=self, name=name, context=context)
        _keep(self._tasks, task)
        if (process := PROCESS.get()) is not None:
            _keep(process.tasks, task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        return done_at_once(self, function, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of an error that nobody asked for: whoever would have is dead, else the world notices (`World.spawn`)."""

    # ── the world ────────────────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, process: Process, main: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Begin a process's first task."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        return context.run(lambda: self.create_task(main(), name=process.name, context=context))

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Schedule an event of the world, which belongs to no process."""
        self._timer(self.now + seconds, callback, args, None)

    def kill(self, process: Process) -> None:
        """Kill a process as SIGKILL does: from here on nothing that it does has an effect."""
        process.dead, process.stopped = True, False
        self._ready.extend(process.parked)
        process.parked = []
        tasks, process.tasks = process.tasks, []
        for task in tasks:
            task.cancel()

    def stop_process(self, process: Process) -> None:
        """Stop a process, as SIGSTOP does."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """Continue a process, as SIGCONT does: what was due meanwhile runs now."""
        process.stopped = False
        self._ready.extend(process.parked)
        process.parked = []

    def interrupt(self) -> None:
        """Let `pump` return after the handle that runs now."""
        self._wanted = True

    def pump(self, until: float) -> bool:
        """Run until `interrupt` (True), or until virtual time `until` (False). Raises `Stalled`.

        An error of a handle outside a task is raised here.
        """
        self._wanted = False
        asyncio._set_running_loop(self)
        try:
            while not self._wanted:
                handle = self._ready.popleft() if self._ready else self._next_timer(until)
                if handle is None:
                    return False
                if handle.off:
                    continue
                process = None if handle.context is None else handle.context.get(PROCESS)
                if process is not None and process.stopped:
                    process.parked.append(handle)
                else:
                    handle.run()
            return True
        finally:
            asyncio._set_running_loop(None)

    def end(self) -> None:
        """End the world after all processes are dead: run their tasks until they have unwound."""
        self._timers.clear()
        asyncio._set_running_loop(self)
        try:
            for _ in range(_UNWINDINGS):
                left = [task for task in self._tasks if not task.done()]
                for task in left:
                    task.cancel()
                if not left and not self._ready:
                    break
                for _ in range(len(self._ready)):
                    handle = self._ready.popleft()
                    if not handle.off:
                        handle.run()
        finally:
            asyncio._set_running_loop(None)
            self._tasks = [task for task in self._tasks if not task.done()]

    def _next_timer(self, until: float) -> Handle | None:
        """Advance the time to the earliest timer, and return it; None if that is after `until`."""
        while self._timers:
            when, _, handle = self._timers[0]
            if when > until:
                return None
            heapq.heappop(self._timers)
            if not handle.off:
                self.now = max(self.now, when)
                return handle
        raise Stalled(f"at {self.now:.3f} s every task waits, and no timer is set")


def _keep(tasks: list[asyncio.Task[Any]], new: asyncio.Task[Any]) -> None:
    """Append a task. From time to time, finished ones are removed, so that their memory is freed."""
    if len(tasks) % _KEPT == _KEPT - 1:
        tasks[:] = [task for task in tasks if not task.done()]
    tasks.append(new)


_KEPT = 32
_UNWINDINGS = 200
"""Maximum number of rounds for tasks to unwind: a cancelled task may wait for others, once for each `finally`."""
