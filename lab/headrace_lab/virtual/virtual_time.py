"""Virtual time for asyncio: when no task is ready, the clock jumps to the next timer. Calls to Redis take no time.

    task ──► ledger ──► InlineRedis ──► redis-server    blocking call: no virtual time passes
    task ──► asyncio.sleep, call_at ──► VirtualLoop     if no task is ready, the clock jumps to the earliest timer
    task ──► XREAD with a limit                         woken by the write that adds to its stream, else at the limit

Invariants: no socket and no thread determines an order, so that the same seed gives the same run. A loop on which
nothing can happen any more raises `Stalled` instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from redis import Redis

T = TypeVar("T")


class Stalled(Exception):
    """All tasks are waiting, and no timer is set."""


class _Jumps(selectors.SelectSelector):
    """A selector that advances the virtual clock by `timeout` instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled(f"at {self.now:.3f} s of virtual time every task waits, and no timer is set")
        self.now += max(0.0, timeout)
        return super().select(0)


def done_at_once(loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """An implementation of `run_in_executor` that calls `function` at once, which takes no virtual time."""
    done: asyncio.Future[T] = loop.create_future()
    try:
        done.set_result(function(*args))
    except Exception as error:
        done.set_exception(error)
    return done


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` is virtual, 0 at the start."""

    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        return done_at_once(self, function, *args)


class LoopClock:
    """The time of the running event loop, as a `headrace_core.clock.Clock`."""

    def time(self) -> float:
        """As `monotonic`: virtual time begins at the Unix epoch."""
        return self.monotonic()

    def monotonic(self) -> float:
        """Seconds since the loop was created."""
        return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class InlineRedis:
    """The subset of `redis.asyncio.Redis` that ledger and job store use, on a blocking client, so that commands do not
    suspend the task.

    The exception is XREAD with a limit, which waits in virtual time. All writes must come from this process, because
    only they wake readers.
    """

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, socket_timeout=30)
        self._newest: dict[str, bytes] = {}
        """The last entry of each stream that was read."""
        self._grown = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._redis, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return command(*args, **kwargs)

        return call

    def register_script(self, source: str) -> Any:
        """A script with the interface of the asynchronous client. Entries that it adds to streams wake their
        readers."""
        sha = self._redis.script_load(source)

        async def call(keys: Sequence[str] = (), args: Sequence[Any] = ()) -> Any:
            pipe, streams = self._redis.pipeline(transaction=False), list(self._newest)
            pipe.evalsha(sha, len(keys), *keys, *args)
            for stream in streams:
                pipe.xrevrange(stream, count=1)
            answer, *lasts = pipe.execute()
            self._wake_readers({s: last[0][0] for s, last in zip(streams, lasts, strict=True) if last})
            return answer

        return call

    def pipeline(self, transaction: bool = True) -> InlinePipeline:
        """A pipeline: commands are queued, and sent by `await pipe.execute()`."""
        return InlinePipeline(self._redis.pipeline(transaction=transaction))

    async def xread(self, streams: Mapping[Any, Any], count: int | None = None, block: int | None = None) -> list[Any]:
        """New entries of the streams. With `block`, of one stream only; waits up to so many milliseconds of virtual
        time."""
        if block is None:
            return cast("list[Any]", self._redis.xread(dict(streams), count=count))
        ((stream, after),) = streams.items()
        deadline = asyncio.get_running_loop().time() + block / 1000
        while True:
            if self._newest.get(stream) != after.encode():
                found = cast("list[Any]", self._redis.xread({stream: after}))
                self._newest[stream] = found[0][1][-1][0] if found else after.encode()
                if found:
                    return found
            try:
                async with asyncio.timeout_at(deadline):
                    await self._grown.wait()
            except TimeoutError:
                return []

    def _wake_readers(self, newest: dict[str, bytes]) -> None:
        if any(self._newest[stream] != entry for stream, entry in newest.items()):
            self._newest.update(newest)
            self._grown.set()
            self._grown = asyncio.Event()

    async def aclose(self) -> None:
        """Close the connection."""
        self._redis.close()


class InlinePipeline:
    """A blocking pipeline with the interface of the asynchronous one."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    async def __aenter__(self) -> InlinePipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pipe.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands. Returns the answers in order; without `raise_on_error`, errors are among them."""
        return list(self._pipe.execute(raise_on_error=raise_on_error))
