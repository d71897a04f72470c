"""How simulated processes reach the one real redis-server: a client without a socket, and the socket of all.

    Ledger, Live, JobStore ──► Port ──► World.call ──► arrives ─┐
    … of many schedules                                        ├─► Server.send: one pipelined round trip for all
    … of many schedules                                        ─┘

`Port` is redis-py's own set of commands over `World.call`, so what a process sends and how it reads the answer are as
on a real connection. A blocking XREAD waits in virtual time, and
is answered by what the observer, who looks after every call, saw last.
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
"""A command as it goes over the wire, for one that is sent often."""
_READ = 1 << 20
_callbacks: dict[str, Callable[..., Any]] = dict(Redis(protocol=2).response_callbacks)  # type: ignore[arg-type]


class Wire(Protocol):
    """What a port sends through: the world, on behalf of one process."""

    def load(self, source: str) -> str:
        """The SHA of a script, from now on known to the server."""
        ...

    def call(self, commands: Sequence[Command]) -> Awaitable[list[Any]]:
        """Carried out together, after a while; their raw answers, after another."""
        ...

    def durable(self) -> Awaitable[None]:
        """Returns when no power loss would take what was answered so far."""
        ...

    def signalled(self, after: bytes, seconds: float) -> Awaitable[bytes | None]:
        """The id of the newest signal, as soon as that is not `after`; None after so long."""
        ...


def _parsed(command: Command, options: dict[str, Any], raw: Any) -> Any:
    if isinstance(raw, Exception):
        raise ResponseError(str(raw)) from raw
    callback = _callbacks.get(command[0])
    options.pop("keys", None)
    return raw if callback is None else callback(raw, **options)


class Port(AsyncCoreCommands):
    """One process's `redis.asyncio.Redis`, as far as the services use it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        """Of every command."""
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
        """To be awaited, as of the real client."""
        sha = self._wire.load(source)

        async def run(keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
            (raw,) = await self._wire.call([("EVALSHA", sha, len(keys), *keys, *args)])
            if isinstance(raw, Exception):
                raise ResponseError(str(raw)) from raw
            return raw

        return run

    async def xread(self, streams: Any, count: Any = None, block: int | None = None) -> Any:  # type: ignore[override]
        """With `block`, of the ledger's signals alone: whoever waits is told of the newest."""
        if block is None:
            return await super().xread(streams, count=count)  # type: ignore[misc]
        ((stream, after),) = streams.items()
        newest = await self._wire.signalled(str(after).encode(), block / 1000)
        return [] if newest is None else [(stream, [(newest, {})])]

    def pipeline(self, transaction: bool = True) -> PortPipeline:
        """Carried out as one either way."""
        return PortPipeline(self._wire)  # type: ignore[abstract]

    async def aclose(self) -> None:
        """There is no connection."""


class PortPipeline(AsyncCoreCommands):
    """Commands are queued at once, and sent by `await execute()`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._queued: list[tuple[Command, dict[str, Any]]] = []

    async def __aenter__(self) -> PortPipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queued = []

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """Of every command."""
        self._queued.append((command, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers, in order; without `raise_on_error` errors are among them."""
        queued, self._queued = self._queued, []
        answers = await self._wire.call([command for command, _ in queued]) if queued else []
        return [
            raw if isinstance(raw, Exception) and not raise_on_error else _parsed(command, options, raw)
            for (command, options), raw in zip(queued, answers, strict=True)
        ]


def pack(command: Command) -> Packed:
    """In Redis' protocol."""
    return hiredis.pack_command(command)


class Server:
    """A real redis-server of this campaign alone, and one blocking connection to it."""

    def __init__(self, folder: Path) -> None:
        self._server = RedisServer(folder)
        self._known: dict[str, str] = {}

    def __enter__(self) -> Server:
        self._server.start()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(self._server.socket))
        self._reader = hiredis.Reader()
        self.send([("CONFIG", "SET", "appendonly", "no")])  # what a power loss takes is simulated
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._server.stop()

    def load(self, source: str) -> str:
        """The script's SHA; it is sent once."""
        if source not in self._known:
            self.send([("SCRIPT", "LOAD", source)])
            self._known[source] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return self._known[source]

    def send(self, commands: Sequence[Command | Packed]) -> list[Any]:
        """One round trip; errors are among the answers."""
        self._socket.sendall(b"".join([c if isinstance(c, bytes) else pack(c) for c in commands]))
        answers: list[Any] = []
        while len(answers) < len(commands):
            self._reader.feed(self._socket.recv(_READ))
            while (found := self._reader.gets()) is not False:
                answers.append(found)
        return answers
