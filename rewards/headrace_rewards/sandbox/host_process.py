"""One host process, seen from the service: from its start to its death. It is never started again; see `supervisor`.

    made ─► load ─► call ─► call ─► …            frames over a socket pair, see `frames`
       any wait that reaches its limit, any bad frame, any flood of output ─► kill ─► `HostDied`, which says why

What is started is its guard, see `guard`. Before `HostDied` is raised the guard has ended, and with it all that ran
below.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from headrace_core.errors import TimedOut
from headrace_core.protocols.grader_check import Failure, FailureKind, Outcome, Score

from . import frames
from .kernel import control_groups
from .scratch import ScratchFolder

_GRACE_SECONDS = 0.5
"""Beyond a unit's own limit: the host cancels an async function by itself first."""
_EXIT_SECONDS = 1.0
"""From a closed socket to a known exit status."""
_REAP_SECONDS = 10.0
_SEND_SECONDS = 30.0
_DRAIN_SECONDS = 0.5
_TAIL_BYTES = 8 << 10
_TAIL_LINES = 20
_LINE_CHARACTERS = 500
_OFF_TOPIC = "the process answered something else than was asked"


_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""Of the service's environment; `LD_LIBRARY_PATH` is also where libraries may be read."""


class HostDied(Exception):
    """The process is gone. `kind` and `message` are those of the failure to report, `tail` what it last printed."""

    def __init__(self, kind: FailureKind, message: str, tail: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.tail = tail


class HostLoadFailed(Exception):
    """The user's file cannot be imported, or has no such function; `traceback` holds the last lines."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.message = message
        self.traceback = traceback


class _Output(asyncio.Protocol):
    """What the process prints: the end of it is kept, and a flood kills the process."""

    def __init__(self, owner: HostProcess, limit: int) -> None:
        self._owner = owner
        self._limit = limit
        self._since_reset = 0
        self._kept = b""
        self._ended: asyncio.Event | None = None
        self.flooded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended is not None:
            self._ended.set()

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_TAIL_BYTES:]
        self._since_reset += len(data)
        if self._since_reset > self._limit and not self.flooded:
            self.flooded = True
            self._owner.kill()

    def reset(self) -> None:
        """A new unit begins."""
        self._since_reset = 0

    async def drained(self) -> None:
        """Everything was read, or the pipe stays open in a process that left the group; the pipe is closed then."""
        if self._ended is None:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            self._transport.close()

    def tail(self) -> str:
        """The last lines that were printed."""
        lines = self._kept.decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(line[-_LINE_CHARACTERS:] for line in lines)


class HostProcess:
    """Runs from the moment it is made; `load` makes it useful, `kill` and `reap` end it."""

    def __init__(self, setup: frames.Setup) -> None:
        """Starts it in the calling thread, which must outlive it: its death ends the guard."""
        self._setup = setup
        self._output = _Output(self, setup.limits.output_bytes)
        self._scratch = ScratchFolder()
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    # -P: the working folder is not on the import path; -B: no byte code is written into the user's
                    # folder; -u: what is printed is not lost in a crash
                    [sys.executable, "-P", "-B", "-u", "-m", "headrace_rewards.sandbox.guard", str(os.getpid())],
                    env=environment(self._scratch.path),
                    cwd=self._scratch.path,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError:
                self._socket.close()
                self._scratch.remove()
                raise
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._killed = False
        self._reaped = False
        self.ready: frames.HostReady

    async def load(self) -> None:
        """Import the user's file; raises `HostLoadFailed` or `HostDied`, and the process is gone then."""
        try:
            await self._connect()
            limit = self._setup.limits.start_seconds
            await self._send(frames.encode(self._setup))
            reply = await self._receive(limit, f"importing {self._setup.path} took longer than {limit:g} s")
            if isinstance(reply, frames.Broken):
                raise HostLoadFailed(reply.message, reply.traceback)
            if not isinstance(reply, frames.HostReady):
                raise await self._dead("bad_output", _OFF_TOPIC)
            self.ready = reply
            if self._setup.level == "isolated":  # it lives in a file system of its own, which was mounted there
                self._scratch.remove()
        except BaseException:
            self.kill()
            await self.reap()
            raise

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        assert self._popen.stderr is not None
        await asyncio.get_running_loop().connect_read_pipe(lambda: self._output, self._popen.stderr)

    async def call(self, units: Mapping[int, frames.Encoded]) -> AsyncIterator[frames.Result]:
        """Results as they come, one for each of `units`; raises `HostDied`."""
        open_units = set(units)
        self._output.reset()
        await self._send(frames.encode(frames.Call([unit.body for unit in units.values()])))
        self._unit_begins()
        while open_units:
            timeout = self._setup.timeout
            reply = await self._receive(timeout + _GRACE_SECONDS, f"took longer than {timeout:g} s")
            if not isinstance(reply, frames.Result) or reply.index not in open_units:
                raise await self._dead("bad_output", _OFF_TOPIC)
            if len(reply.outcomes) != units[reply.index].samples:
                raise await self._dead("bad_output", _OFF_TOPIC)
            open_units.remove(reply.index)
            reply = frames.Result(reply.index, [_believed(outcome) for outcome in reply.outcomes])
            self._output.reset()
            self._unit_begins()
            yield reply

    def _unit_begins(self) -> None:
        """The guard counts processor time from here on; the host itself cannot say so."""
        if self._popen.returncode is None:  # its number is its own until it is reaped
            os.kill(self._popen.pid, signal.SIGUSR1)

    @property
    def alive(self) -> bool:
        """Whether it can take a call; the kernel needs a moment to end a killed process, so it is not asked alone."""
        return not self._killed and self._exited() is None

    def kill(self) -> None:
        """Have the guard end it with all that it started; at once, and without waiting. Idempotent."""
        self._killed = True
        if self._popen.returncode is None:
            for number in (signal.SIGTERM, signal.SIGCONT):  # below level `filtered` a user's code can stop the guard
                self._popen.send_signal(number)

    async def reap(self) -> None:
        """Wait for the end of a killed process and remove its folder. Idempotent; raises `TimedOut`."""
        if self._reaped:
            return
        try:
            await asyncio.to_thread(self._popen.wait, _REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            raise TimedOut(f"reward process {self._popen.pid} did not end within {_REAP_SECONDS:g} s") from None
        await self._output.drained()
        if self._writer is not None:
            self._writer.close()
        self._socket.close()
        if self._popen.stderr is not None:
            self._popen.stderr.close()
        self._reaped = True
        await asyncio.to_thread(control_groups.sweep)
        await asyncio.to_thread(self._scratch.remove)

    async def _send(self, body: bytes) -> None:
        assert self._writer is not None
        self._writer.write(frames.frame(body))
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._writer.drain()
        except TimeoutError:
            raise await self._dead("timeout", f"did not read its input within {_SEND_SECONDS:g} s") from None
        except ConnectionError:
            raise await self._ended() from None

    async def _receive(self, limit: float, overdue: str) -> frames.HostReady | frames.Broken | frames.Result:
        try:
            async with asyncio.timeout(limit):
                return frames.decode_reply(await frames.read_frame(self._reader))
        except TimeoutError:
            raise await self._dead("timeout", overdue) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._ended() from None
        except (ValueError, RecursionError) as fault:  # of msgspec, of UTF-8, too long a frame, or one nested too deep
            raise await self._dead("bad_output", f"the process broke the protocol: {fault}") from None

    async def _ended(self) -> HostDied:
        """The process closed its socket: find out how it ended."""
        if self._output.flooded:
            limit = self._setup.limits.output_bytes
            return await self._dead("bad_output", f"printed more than {limit} bytes for one call")
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                how = await asyncio.to_thread(self._exited, wait=True)
        except TimeoutError:  # it lives on; the thread that waits for it ends with the kill below
            how = "closed its socket"
        return await self._dead("crashed", f"the process {how}")

    async def _dead(self, kind: FailureKind, message: str) -> HostDied:
        self.kill()
        await self.reap()
        return HostDied(kind, message, self._output.tail())

    def _exited(self, *, wait: bool = False) -> str | None:
        """How the process ended, or `None`. Does not reap, so that its number stays taken until the group is killed."""
        try:
            state = os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG))
        except ChildProcessError:  # reaped already
            return "was ended"
        if state is None:
            return None
        if state.si_code == os.CLD_EXITED:
            return f"exited with status {state.si_status}"
        return f"was killed by {signal.Signals(state.si_status).name}"


def _believed(outcome: Outcome) -> Outcome:
    """What a host can have written; what a user's code forged in its place may be as long as a frame.

    Of likelihoods a host knows nothing: the policy's are not sent to it.
    """
    if isinstance(outcome, Score) and outcome.likelihood is not None:
        return msgspec.structs.replace(outcome, likelihood=None)
    if not isinstance(outcome, Failure):
        return outcome
    return Failure(outcome.kind, outcome.message[:_TAIL_BYTES], outcome.traceback[-_TAIL_LINES * _LINE_CHARACTERS :])


def environment(scratch: Path) -> dict[str, str]:
    """`scratch` is the working, home and temporary folder."""
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"HOME": str(scratch), "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
    return env | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
