"""An event loop of simulated processes: virtual time, and processes that die or stand still.

    task, timer ──► call_soon, call_at ──► its process (a context variable) ─┬─ runs:     as soon as its turn comes
                                                                             ├─ stopped:  parked until it goes on
                                                                             └─ dead:     its tasks are cancelled

Invariants: the order of all that runs follows from what was asked for alone (no socket, no thread, no real time), so
the same seed gives the same run; a stopped process runs nothing, and what was due meanwhile runs when it goes on;
nothing that a dead process still does while its tasks unwind reaches the world (`Process.check`, asked by every door to
it). Several loops may run in turn in one thread: `pump` returns whenever the world has to answer something.
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
    """One simulated process; it lives once. A restart is another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = self.stopped = False
        self.offset = 0.0
        """Seconds by which its wall clock is before the world's. Timers do not follow that one."""
        self.port: Any = None
        """Its client of Redis; and the world it is in."""
        self.world: Any = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.parked: list[Handle] = []

    def check(self) -> None:
        """Every way out of the process asks this first. Raises `CancelledError` for a dead one."""
        if self.dead:
            raise asyncio.CancelledError(f"{self.name} is dead")


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def here() -> Process:
    """The process whose code runs."""
    process = PROCESS.get()
    assert process is not None
    return process


class Handle:
    """What is to be run, now or at its time: asyncio's, as far as tasks and timeouts ask for it, at half the price."""

    __slots__ = ("_args", "_callback", "_when", "context", "off")

    def __init__(
        self, callback: Callable[..., object], args: Any, context: contextvars.Context | None, when: float = 0.0
    ) -> None:
        self._callback, self._args, self._when = callback, args, when
        self.context = context
        """None: of no process."""
        self.off = False
        """Whether it was cancelled."""

    def cancel(self) -> None:
        """Of a timer: it stays in the heap, and is passed over when its time comes."""
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
    """Every task waits, and no timer is set."""


def _own(context: contextvars.Context | None) -> contextvars.Context:
    """As asyncio has it: that of the caller where none is named."""
    return contextvars.copy_context() if context is None else context


class SimulatedLoop(asyncio.AbstractEventLoop):
    """What asyncio's tasks, futures and timers need, in virtual time."""

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
        """An event of the world, of no process."""
        self._timer(self.now + seconds, callback, args, None)

    def kill(self, process: Process) -> None:
        """Like SIGKILL: from here on nothing of it has an effect."""
        process.dead, process.stopped = True, False
        self._ready.extend(process.parked)
        process.parked = []
        tasks, process.tasks = process.tasks, []
        for task in tasks:
            task.cancel()

    def stop_process(self, process: Process) -> None:
        """Like SIGSTOP."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """Like SIGCONT: what was due meanwhile runs now."""
        process.stopped = False
        self._ready.extend(process.parked)
        process.parked = []

    def interrupt(self) -> None:
        """Let `pump` return after the handle that runs now."""
        self._wanted = True

    def pump(self, until: float) -> bool:
        """Run until `interrupt` (True), or until virtual time `until` (False). Raises `Stalled`.

        Whatever a handle raises by itself, out of no task, is raised here.
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
        """The world is over, and every process dead: their tasks unwind, as those of a killed one do."""
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
        """The earliest timer, and it is its time; None where that lies beyond `until`."""
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
    """Those that are done are let go of now and then: with them goes all that they hold."""
    if len(tasks) % _KEPT == _KEPT - 1:
        tasks[:] = [task for task in tasks if not task.done()]
    tasks.append(new)


_KEPT = 32
_UNWINDINGS = 200
"""Turns of all tasks: one that is cancelled waits for others that are, and for each `finally` once more."""
