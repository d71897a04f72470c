"""The load generator of `run.py`: a minimal keep-alive HTTP client on uvloop, which takes far less time than what it
measures, and listeners of event streams that record what they receive."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar, cast

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_P = TypeVar("_P", bound=asyncio.Protocol)


def _request(host: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n\r\n".encode()


class Reader(asyncio.Protocol):
    """A connection that sends the next request as soon as it has an answer; `seconds` has the time of each answer."""

    def __init__(self, host: str, path: str) -> None:
        self.seconds: list[float] = []
        self.wrong = 0
        self.asking = True
        self._request = _request(host, path)
        self._buffer = b""
        self._asked = 0.0
        self.idle = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return
        self.seconds.append(time.perf_counter() - self._asked)
        self.wrong += not head.startswith(b"HTTP/1.1 200 ")
        self._buffer = b""
        if self.asking:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.wrong += self.asking
        self.idle.set_result(None)


async def read_for(seconds: float, host: str, path: str, connections: int) -> tuple[list[float], int]:
    """Read over `connections` connections; returns (seconds of each answer, number of answers that were not 200)."""
    readers = [await _connected(lambda: Reader(host, path), host) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for reader in readers:
        reader.asking = False
    await asyncio.wait_for(asyncio.gather(*(r.idle for r in readers)), 30)
    return [s for r in readers for s in r.seconds], sum(r.wrong for r in readers)


class Listener(asyncio.Protocol):
    """A client of one event stream; `numbers` are the ids it has received, in order."""

    def __init__(self, host: str, path: str) -> None:
        self.numbers: list[int] = []
        self.bytes = 0
        self.lost = False
        self._request = _request(host, path)
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        self.numbers += map(int, _ID.findall(whole))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


async def listeners(count: int, host: str, path: str) -> list[Listener]:
    """Open `count` streams."""
    return [await _connected(lambda: Listener(host, path), host) for _ in range(count)]


async def _connected(protocol: Callable[[], _P], host: str) -> _P:
    name, _, port = host.partition(":")
    return (await asyncio.get_running_loop().create_connection(protocol, name, int(port)))[1]


def missed(listener: Listener, first: int, last: int) -> Iterator[int]:
    """Entries of first…last that were missing; if none was, but they came twice or out of order, `first`."""
    got = [n for n in listener.numbers if first <= n <= last]
    if got != list(range(first, last + 1)):
        yield from sorted(set(range(first, last + 1)) - set(got)) or [first]


async def wait_for_all(open_streams: list[Listener], number: int, seconds: float) -> None:
    """Wait until each stream has received entry `number`, or the time is over; `missed` tells which have not."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not all(s.numbers and s.numbers[-1] >= number for s in open_streams):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
