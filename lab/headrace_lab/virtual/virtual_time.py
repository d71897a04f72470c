"""Virtual time for asyncio: the clock jumps to the next timer when nothing is ready; real Redis takes none of it.

    task ──► ledger ──► InlineRedis ──► redis-server    answered before the task goes on: no virtual time passes
    task ──► asyncio.sleep, call_at ──► VirtualLoop     nobody is ready: the clock jumps to the earliest timer
    task ──► XREAD with a limit                         woken by the write that adds to its stream, else at the limit

Invariants: no socket and no thread decides an order, so the same seed gives the same run; a loop on which nothing can
happen any more raises `Stalled` instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from redis import Redis

T = TypeVar("T")


class Stalled(Exception):
    """Every task waits, and no timer is set."""


class _Jumps(selectors.SelectSelector):
    """Instead of waiting `timeout` seconds, says that they are over."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled(f"at {self.now:.3f} s of virtual time every task waits, and no timer is set")
        self.now += max(0.0, timeout)
        return super().select(0)


def done_at_once(loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """For `run_in_executor`: what a thread would do, done here and now. It takes no virtual time."""
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
    """The time of the event loop that runs (`headrace_core.clock.Clock`)."""

    def time(self) -> float:
        """As `monotonic`: the virtual world began in 1970."""
        return self.monotonic()

    def monotonic(self) -> float:
        """Seconds since the loop began."""
        return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class InlineRedis:
    """What ledger and job store use of `redis.asyncio.Redis`, over a blocking client: a command suspends nobody.

    The exception is XREAD with a limit, which waits in virtual time. One process must do all the writing: only its own
    writes wake a reader.
    """

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, socket_timeout=30)
        self._newest: dict[str, bytes] = {}
        """Of each stream that was read from: its last entry."""
        self._grown = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._redis, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return command(*args, **kwargs)

        return call

    def register_script(self, source: str) -> Any:
        """A script to be awaited, as of the asynchronous client. What it adds to a stream wakes the readers."""
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
        """Commands are queued at once and sent by `await pipe.execute()`."""
        return InlinePipeline(self._redis.pipeline(transaction=transaction))

    async def xread(self, streams: Mapping[Any, Any], count: int | None = None, block: int | None = None) -> list[Any]:
        """New entries; with `block`, all those of one stream, waited for up to so many milliseconds of virtual time."""
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
        """Let go of the connection."""
        self._redis.close()


class InlinePipeline:
    """What the asynchronous pipeline offers, on a blocking one."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    async def __aenter__(self) -> InlinePipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pipe.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was queued; the answers, in order; without `raise_on_error` errors are among them."""
        return list(self._pipe.execute(raise_on_error=raise_on_error))
