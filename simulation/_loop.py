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
        self.parked: list[asyncio.Handle] = []

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


class Stalled(Exception):
    """Every task waits, and no timer is set."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """What asyncio's tasks, futures and timers need, in virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        """The world's time, seconds."""
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
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
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, list(args), self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the heap, and is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coroutine: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=self, name=name, context=context)
        self._tasks.append(task)
        if (process := PROCESS.get()) is not None:
            process.tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """At once: what a thread does takes no time here."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(function(*args))
        except Exception as error:
            done.set_exception(error)
        return done

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
        handle = asyncio.TimerHandle(self.now + seconds, callback, list(args), self, _WORLD)
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), handle))

    def kill(self, process: Process) -> None:
        """Like SIGKILL: from here on nothing of it has an effect."""
        process.dead, process.stopped = True, False
        self._ready.extend(process.parked)
        process.parked = []
        for task in process.tasks:
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
                if not self._ready and not self._next_timer(until):
                    return False
                self._run_one()
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
                    return
                for _ in range(len(self._ready)):
                    self._ready.popleft()._run()
        finally:
            asyncio._set_running_loop(None)

    def _next_timer(self, until: float) -> bool:
        """Make the earliest timer ready, and it the time; False where it lies beyond `until`."""
        while self._timers:
            when, _, handle = self._timers[0]
            if when > until:
                return False
            heapq.heappop(self._timers)
            if not handle._cancelled:
                self.now = max(self.now, when)
                self._ready.append(handle)
                return True
        raise Stalled(f"at {self.now:.3f} s every task waits, and no timer is set")

    def _run_one(self) -> None:
        handle = self._ready.popleft()
        if handle._cancelled:
            return
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is not None and process.stopped:
            process.parked.append(handle)
            return
        handle._run()


_WORLD = contextvars.Context()
_UNWINDINGS = 200
"""Turns of all tasks: one that is cancelled waits for others that are, and for each `finally` once more."""
