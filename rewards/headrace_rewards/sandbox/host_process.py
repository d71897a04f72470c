"""The service's handle on one host process, from its start to its end. `host_supervisor` replaces one that died.

    created ─► load ─► call ─► call ─► …         frames over a socket pair, see `frames`
       a time limit, an invalid frame, too much output ─► kill ─► `HostDied`, which says why

The process that is started is the host's guard, see `guard`. When `HostDied` is raised, the guard and all processes
below it have ended.
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
"""Added to a unit's time limit, because the host itself cancels an async function at the limit."""
_EXIT_SECONDS = 1.0
"""Time limit from a closed socket to a known exit status."""
_REAP_SECONDS = 10.0
_SEND_SECONDS = 30.0
_DRAIN_SECONDS = 0.5
_TAIL_BYTES = 8 << 10
_TAIL_LINES = 20
_LINE_CHARACTERS = 500
_UNEXPECTED_ANSWER = "the process answered something else than was asked"


_PASSED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""Variables of the service's environment that are passed on; folders in `LD_LIBRARY_PATH` are readable too."""


class HostDied(Exception):
    """The process has ended. `kind`, `message`: of the failure to report; `tail`: the last lines that it printed."""

    def __init__(self, kind: FailureKind, message: str, tail: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.tail = tail


class HostLoadFailed(Exception):
    """The user's file cannot be imported, or has no such function; `traceback`: its last lines."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.message = message
        self.traceback = traceback


class _Output(asyncio.Protocol):
    """Reads what the process prints: keeps the last lines, and kills the process if it prints too much."""

    def __init__(self, owner: HostProcess, limit: int) -> None:
        self._owner = owner
        self._limit = limit
        self._since_reset = 0
        self._tail = b""
        self._report_end: asyncio.Event | None = None
        self.flooded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._report_end = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._report_end is not None:
            self._report_end.set()

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._since_reset += len(data)
        if self._since_reset > self._limit and not self.flooded:
            self.flooded = True
            self._owner.kill()

    def reset(self) -> None:
        """Count from 0 again, for a new unit."""
        self._since_reset = 0

    async def drained(self) -> None:
        """Wait until all output is read. Closes the pipe if a process that left the group still holds it open."""
        if self._report_end is None:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._report_end.wait()
        except TimeoutError:
            self._transport.close()

    def tail(self) -> str:
        """The last lines of the output."""
        lines = self._tail.decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(line[-_LINE_CHARACTERS:] for line in lines)


class HostProcess:
    """A running process. `load` loads the user's code, `kill` and `reap` end the process."""

    def __init__(self, setup: frames.Setup) -> None:
        """Start the process in the calling thread, which must outlive it: the thread's end ends the guard."""
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
        """Load the user's code. Raises `HostLoadFailed` or `HostDied`; then the process has ended."""
        try:
            await self._connect()
            limit = self._setup.limits.start_seconds
            await self._send(frames.encode(self._setup))
            reply = await self._receive(limit, f"importing {self._setup.path} took longer than {limit:g} s")
            if isinstance(reply, frames.Broken):
                raise HostLoadFailed(reply.message, reply.traceback)
            if not isinstance(reply, frames.HostReady):
                raise await self._kill_and_report("bad_output", _UNEXPECTED_ANSWER)
            self.ready = reply
            if self._setup.level == "isolated":  # the host has a file system of its own, mounted at that path
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
        """Yield one result for each of `units`, in the order in which they are ready. Raises `HostDied`."""
        open_units = set(units)
        self._output.reset()
        await self._send(frames.encode(frames.Call([unit.body for unit in units.values()])))
        self._signal_unit()
        while open_units:
            timeout = self._setup.timeout
            reply = await self._receive(timeout + _GRACE_SECONDS, f"took longer than {timeout:g} s")
            if not isinstance(reply, frames.Result) or reply.index not in open_units:
                raise await self._kill_and_report("bad_output", _UNEXPECTED_ANSWER)
            if len(reply.outcomes) != units[reply.index].samples:
                raise await self._kill_and_report("bad_output", _UNEXPECTED_ANSWER)
            open_units.remove(reply.index)
            reply = frames.Result(reply.index, [_sanitized(outcome) for outcome in reply.outcomes])
            self._output.reset()
            self._signal_unit()
            yield reply

    def _signal_unit(self) -> None:
        """Tell the guard that a unit begins, from which on it counts processor time. The service does so, since the
        host is not trusted."""
        if self._popen.returncode is None:  # until it is reaped, no other process has its pid
            os.kill(self._popen.pid, signal.SIGUSR1)

    @property
    def alive(self) -> bool:
        """Whether the process can take a call. A killed process does not count, although it may take a moment to
        end."""
        return not self._killed and self._exited() is None

    def kill(self) -> None:
        """Tell the guard to end the host and all its processes. Does not wait. Idempotent."""
        self._killed = True
        if self._popen.returncode is None:
            for number in (
                signal.SIGTERM,
                signal.SIGCONT,
            ):  # SIGCONT: below level `filtered` a user's code can stop the guard
                self._popen.send_signal(number)

    async def reap(self) -> None:
        """Wait for the end of a killed process, and remove its folder. Idempotent. Raises `TimedOut`."""
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
            raise await self._kill_and_report("timeout", f"did not read its input within {_SEND_SECONDS:g} s") from None
        except ConnectionError:
            raise await self._report_end() from None

    async def _receive(self, limit: float, overdue: str) -> frames.HostReady | frames.Broken | frames.Result:
        try:
            async with asyncio.timeout(limit):
                return frames.decode_reply(await frames.read_frame(self._reader))
        except TimeoutError:
            raise await self._kill_and_report("timeout", overdue) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._report_end() from None
        except (ValueError, RecursionError) as fault:  # of msgspec, of UTF-8, too long a frame, or one nested too deep
            raise await self._kill_and_report("bad_output", f"the process broke the protocol: {fault}") from None

    async def _report_end(self) -> HostDied:
        """The error for a process that closed its socket: finds out how the process ended."""
        if self._output.flooded:
            limit = self._setup.limits.output_bytes
            return await self._kill_and_report("bad_output", f"printed more than {limit} bytes for one call")
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                how = await asyncio.to_thread(self._exited, wait=True)
        except TimeoutError:  # it is still alive; the thread that waits for it returns after the kill below
            how = "closed its socket"
        return await self._kill_and_report("crashed", f"the process {how}")

    async def _kill_and_report(self, kind: FailureKind, message: str) -> HostDied:
        self.kill()
        await self.reap()
        return HostDied(kind, message, self._output.tail())

    def _exited(self, *, wait: bool = False) -> str | None:
        """How the process ended, or `None`. Does not reap it, so that its pid stays reserved until the group is
        killed."""
        try:
            state = os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG))
        except ChildProcessError:  # reaped already
            return "was ended"
        if state is None:
            return None
        if state.si_code == os.CLD_EXITED:
            return f"exited with status {state.si_status}"
        return f"was killed by {signal.Signals(state.si_status).name}"


def _sanitized(outcome: Outcome) -> Outcome:
    """The outcome without fields that a genuine host never sets, since user code may have forged it: texts are cut to a
    host's limits, and a likelihood is removed, because a host is never sent the policy's measurements."""
    if isinstance(outcome, Score) and outcome.likelihood is not None:
        return msgspec.structs.replace(outcome, likelihood=None)
    if not isinstance(outcome, Failure):
        return outcome
    return Failure(outcome.kind, outcome.message[:_TAIL_BYTES], outcome.traceback[-_TAIL_LINES * _LINE_CHARACTERS :])


def environment(scratch: Path) -> dict[str, str]:
    """The environment of a host process. `scratch`: its working, home and temporary folder."""
    env = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    env |= {"HOME": str(scratch), "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
    return env | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
