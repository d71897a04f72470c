"""The process between service and host: `python -m headrace_rewards.sandbox.guard SERVICE_PID`, a socket as stdin.

    Setup from the socket ─► enclose ─► fork ─┬─► host: confined, serves calls on the socket
                                              └─► watch, until one of
         the host ended                                   ─► end all that is left, end in the same way
         the service ended, or asked for it (SIGTERM)     ─► end host and all
         all together use too much memory, too many tasks ─► say so on stderr, end host and all

Invariant: when it has ended, so has every process that the host started, also one that left its session or whose
parent ended. In a namespace the kernel sees to that; elsewhere orphans come to the guard. Only a guard that is itself
killed with SIGKILL cannot keep that promise outside a namespace; the host dies with it all the same.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

from headrace_rewards.sandbox import containment, host, kernel, wire

_BUSY_SECONDS, _QUIET_SECONDS = 0.05, 0.2
"""Between two looks at what is used: with processes beside the host, and without."""
_END_SECONDS, _LOOK_SECONDS = 5.0, 0.005
"""For the end of all that is left, and between two looks at it."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WAITED_FOR = (signal.SIGTERM, signal.SIGCHLD)


class Guard:
    """See the module's picture."""

    def __init__(self, cell: containment.Cell, host_pid: int) -> None:
        self._cell = cell
        self._host = host_pid
        self._status: int | None = None

    def watch(self) -> int:
        """The wait status of the host; every process below is gone then, and so is the scratch folder."""
        try:
            return self._watch()
        finally:
            self._end_all()
            if self._cell.init is None:  # else the folder was a file system of its own
                shutil.rmtree(self._cell.scratch, ignore_errors=True)

    def _watch(self) -> int:
        period = _QUIET_SECONDS
        while True:
            heard = signal.sigtimedwait(_WAITED_FOR, period)
            self._reap()
            if self._status is not None:
                return self._status
            if heard is not None and heard.si_signo == signal.SIGTERM:
                return signal.SIGKILL
            below = self._below()
            fault = self._too_much(below)
            if fault is not None:
                with contextlib.suppress(BrokenPipeError):  # the service has just ended
                    os.write(2, f"{fault}\n".encode())
                return signal.SIGKILL
            period = _BUSY_SECONDS if len(below) > 1 else _QUIET_SECONDS

    def _reap(self) -> bool:
        """Whether any children are left, after those that have ended were reaped; notes how the host ended."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == self._host:
                    self._status = ended[1]
        except ChildProcessError:
            return False
        return True

    def _below(self) -> list[int]:
        """Processes that the host is, and that it started; by their numbers in `/proc`."""
        if self._cell.init is None:
            return _descendants(os.getpid())
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def _too_much(self, below: list[int]) -> str | None:
        allowed = self._cell.setup.limits
        tasks = sum(_tasks(pid) for pid in below) if len(below) > 1 else 0
        if tasks > allowed.processes:
            return f"{tasks} processes and threads ran at once; {allowed.processes} are allowed"
        if len(below) > 1 and sum(map(_resident, below)) > allowed.memory_bytes:
            used = sum(map(_share_of_memory, below))  # pages that several have count once; dearer to ask for
            if used > allowed.memory_bytes:
                return f"its processes used {used} bytes of memory together; {allowed.memory_bytes} are allowed"
        return None

    def _end_all(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        if self._cell.init is not None:
            _signal(self._cell.init.pid, signal.SIGKILL)
            if self._status is None:
                _signal(self._host, signal.SIGKILL)
            while self._reap() and time.monotonic() < deadline:  # process 1 ends when all others have
                signal.sigtimedwait([signal.SIGCHLD], _LOOK_SECONDS)
            return
        stopped: set[int] = set()
        while (left := set(_descendants(os.getpid()))) and time.monotonic() < deadline:
            # a stopped process forks no more, and still counts among those allowed: nothing escapes between two looks
            for pid in left:
                _signal(pid, signal.SIGKILL if left <= stopped else signal.SIGSTOP)
            stopped = left
            signal.sigtimedwait([signal.SIGCHLD], _LOOK_SECONDS)
            self._reap()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    found = []
    open_pids = [pid]
    while open_pids:
        for children in Path(f"/proc/{open_pids.pop()}/task").glob("*/children"):
            try:
                below = [int(word) for word in children.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            found += below
            open_pids += below
    return found


def _tasks(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _share_of_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        return _resident(pid)
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _end_like(status: int) -> None:
    """Never returns: the service reads from the guard's end how the host ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> None:
    """Guard the host that the first frame describes."""
    service = int(sys.argv[1])
    kernel.signal_at_death_of_parent(signal.SIGTERM)
    kernel.adopt_orphans()
    if os.getppid() != service:
        return
    channel = host.Channel()
    body = channel.receive()
    if body is None:
        return
    setup = wire.decode_request(body)
    assert isinstance(setup, wire.Setup)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)  # until here SIGTERM ended it at once
    try:
        cell = containment.enclose(setup, Path.cwd())
    except kernel.Unheld as fault:
        channel.send(wire.Broken(str(fault), ""))
        return
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
        host.run(channel, cell)
    channel.close()
    _end_like(Guard(cell, pid).watch())


if __name__ == "__main__":
    main()
