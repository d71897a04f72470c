"""The gateway's side of `fork_server`: runs commands in forked processes that need no time for imports.

run ─► send a command and its sockets ─► question out, answer and errors in, exit status ─► ProcessResult
         └ the server has ended: start another one, and send again
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from headrace_core.errors import Unavailable

from .json_process import ProcessResult

END_SECONDS = 10.0
"""Time limit for the end of a killed process, and of the server after its socket is closed."""
_READ_BYTES = 1 << 16
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)
"""Errors of a socket whose queue of messages, or of files in them, is full."""


class ForkServer:
    """A fork server. The first question or `start` starts it; `close` ends it with all of its children."""

    def __init__(self, preloaded: Sequence[str], env: Mapping[str, str]) -> None:
        """`preloaded`: `module` or `module:function`, see `fork_server`; `env`: added to the gateway's environment."""
        self._preloaded = preloaded
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The server's pid; None if it was not started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server if it does not run. Returns before its imports are done; questions wait for them."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            await self._end()
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.setblocking(False)
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "headrace_gateway.limited_processes.fork_server", *self._preloaded),
                    env={**os.environ, **self._env},
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is the gateway's
                )

    async def run(self, command: str, question: bytes) -> ProcessResult:
        """Run `python -m <command>` with `question` on stdin. If this is cancelled, the process is killed. If the
        server dies, the command is repeated once with another server. Raises `Unavailable`."""
        for _ in range(2):
            ended = await self._asked(command, question)
            if ended is not None:
                return ended
        raise Unavailable("the process that forks checks was ended while it was asked, twice", retry_after=10)

    async def _asked(self, command: str, question: bytes) -> ProcessResult | None:
        """The process's result; None if the server ended first."""
        with ExitStack() as files:
            pairs = [socket.socketpair() for _ in range(3)]
            ours, theirs = [files.enter_context(a) for a, _ in pairs], [files.enter_context(b) for _, b in pairs]
            for file in ours:
                file.setblocking(False)
            await self._hand_over(command, theirs)
            for file in theirs:
                file.close()
            data, errors, life = ours
            try:
                out, stderr, status, _ = await asyncio.gather(
                    _read(data), _read(errors), _read(life), _send(data, question)
                )
            except BaseException:
                life.shutdown(socket.SHUT_WR)
                with contextlib.suppress(TimeoutError):  # killed, it ends as soon as the kernel lets it
                    async with asyncio.timeout(END_SECONDS):
                        await _read(life)
                raise
        return ProcessResult(int(status), out, stderr) if status else None

    async def close(self) -> None:
        async with self._starting:
            await self._end()

    async def _hand_over(self, command: str, files: Sequence[socket.socket]) -> None:
        for _ in range(2):
            await self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [command.encode()], [file.fileno() for file in files])
            except ConnectionError:  # it has just ended
                await self._ended()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise Unavailable("too many checks wait for a process: ask again", retry_after=10) from error
            else:
                return
        raise Unavailable("the process that forks checks ends as soon as it is started: the log says why")

    async def _ended(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            await self._ended()
        self._process = self._control = None


async def _read(file: socket.socket) -> bytes:
    """Read to the end. A process that did not read all of its question resets the connection, which counts as the
    end."""
    loop, parts = asyncio.get_running_loop(), list[bytes]()
    with contextlib.suppress(ConnectionError):
        while part := await loop.sock_recv(file, _READ_BYTES):
            parts.append(part)
    return b"".join(parts)


async def _send(file: socket.socket, question: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # the process ended before it had read everything
        await asyncio.get_running_loop().sock_sendall(file, question)
        file.shutdown(socket.SHUT_WR)
