"""How simulated processes use the one real Redis server: each has a client without a socket; all share one connection.

    Ledger, SettingsLog, JobStore ──► Port ──► World.call ──► arrives ─┐
    … of many schedules                                               ├─► Server.send: one pipelined round trip for all
    … of many schedules                                               ─┘

`Port` has redis-py's own commands on top of `World.call`, so that requests and the decoding of answers are as on a real
connection. A blocking XREAD waits in virtual time, and is answered from the newest signal that the observer has seen.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import hiredis
from redis.asyncio import Redis
from redis.commands import AsyncCoreCommands
from redis.exceptions import ResponseError

from headrace_gateway.service.embedded_redis import RedisServer

Command = tuple[Any, ...]
Packed = bytes
"""A command in Redis' protocol, encoded once because it is sent often."""
_READ = 1 << 20
_callbacks: dict[str, Callable[..., Any]] = dict(Redis(protocol=2).response_callbacks)  # type: ignore[arg-type]


class Wire(Protocol):
    """The connection of one process to its world."""

    def load(self, source: str) -> str:
        """Load a script into the server; returns its SHA."""
        ...

    def call(self, commands: Sequence[Command]) -> Awaitable[list[Any]]:
        """Execute commands together, after a delay; returns their raw answers, after another."""
        ...

    def durable(self) -> Awaitable[None]:
        """Returns when everything answered so far would survive a power loss."""
        ...

    def signalled(self, after: bytes, seconds: float) -> Awaitable[bytes | None]:
        """The id of the newest signal, as soon as it is not `after`; None after `seconds`."""
        ...


def _parsed(command: Command, options: dict[str, Any], raw: Any) -> Any:
    if isinstance(raw, Exception):
        raise ResponseError(str(raw)) from raw
    callback = _callbacks.get(command[0])
    options.pop("keys", None)
    return raw if callback is None else callback(raw, **options)


class Port(AsyncCoreCommands):
    """The `redis.asyncio.Redis` of one process, as far as the services use it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        """Called by redis-py's methods for every command."""
        if command[0] == "CONFIG GET":
            raise ResponseError("what is on the disk is simulated: this server lets nobody configure it")
        if command[:2] == ("INFO", "server"):
            return {"redis_version": "8.0.0"}
        if command[0] == "WAITAOF":
            await self._wire.durable()
            return [1, 0]
        (raw,) = await self._wire.call([command])
        return _parsed(command, options, raw)

    def register_script(self, source: str) -> Any:  # type: ignore[override]
        """A script with the interface of the real client."""
        sha = self._wire.load(source)

        async def run(keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
            (raw,) = await self._wire.call([("EVALSHA", sha, len(keys), *keys, *args)])
            if isinstance(raw, Exception):
                raise ResponseError(str(raw)) from raw
            return raw

        return run

    async def xread(self, streams: Any, count: Any = None, block: int | None = None) -> Any:  # type: ignore[override]
        """With `block`, only the ledger's signals can be read: returns the newest one."""
        if block is None:
            return await super().xread(streams, count=count)  # type: ignore[misc]
        ((stream, after),) = streams.items()
        newest = await self._wire.signalled(str(after).encode(), block / 1000)
        return [] if newest is None else [(stream, [(newest, {})])]

    def pipeline(self, transaction: bool = True) -> PortPipeline:
        """A pipeline, which is always executed atomically."""
        return PortPipeline(self._wire)  # type: ignore[abstract]

    async def aclose(self) -> None:
        """Nothing to do: there is no connection."""


class PortPipeline(AsyncCoreCommands):
    """Queues commands, and sends them by `await execute()`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._queued: list[tuple[Command, dict[str, Any]]] = []

    async def __aenter__(self) -> PortPipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queued = []

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """Called by redis-py's methods for every command."""
        self._queued.append((command, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands; returns the answers in order. Without `raise_on_error`, errors are among them."""
        queued, self._queued = self._queued, []
        answers = await self._wire.call([command for command, _ in queued]) if queued else []
        return [
            raw if isinstance(raw, Exception) and not raise_on_error else _parsed(command, options, raw)
            for (command, options), raw in zip(queued, answers, strict=True)
        ]


def pack(command: Command) -> Packed:
    """Encode a command in Redis' protocol."""
    return hiredis.pack_command(command)


class Server:
    """A real Redis server for one campaign, with one blocking connection to it."""

    def __init__(self, folder: Path) -> None:
        self._server = RedisServer(folder)
        self._known: dict[str, str] = {}

    def __enter__(self) -> Server:
        self._server.start()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(self._server.socket))
        self._reader = hiredis.Reader()
        self.send([("CONFIG", "SET", "appendonly", "no")])  # the effect of a power loss is simulated
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._server.stop()

    def load(self, source: str) -> str:
        """Load a script, unless it is loaded; returns its SHA."""
        if source not in self._known:
            self.send([("SCRIPT", "LOAD", source)])
            self._known[source] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return self._known[source]

    def send(self, commands: Sequence[Command | Packed]) -> list[Any]:
        """Send commands in one round trip. Returns the answers; errors are among them."""
        self._socket.sendall(b"".join([c if isinstance(c, bytes) else pack(c) for c in commands]))
        answers: list[Any] = []
        while len(answers) < len(commands):
            self._reader.feed(self._socket.recv(_READ))
            while (found := self._reader.gets()) is not False:
                answers.append(found)
        return answers
