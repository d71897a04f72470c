"""The process between service and host: `python -m headrace_rewards.sandbox.guard SERVICE_PID`, a socket as stdin.

    Setup from the socket ─► enclose ─► fork ─┬─► host: confined, serves calls on the socket
                                              └─► watch, until one of
         the host ended                                   ─► kill all processes left, exit with the host's status
         the service ended, or sent SIGTERM               ─► kill the host and all its processes
         together they use too much, see `usage`          ─► say so on stderr, kill the host and all its processes
         the host closed the socket, but is alive         ─► the same
    meanwhile it connects unix sockets for the host (see `connections`); SIGUSR1 of the service marks a unit's begin

Invariant: when the guard has ended, so has every process that the host started, even one that left its session or whose
parent ended. In a namespace the kernel ensures that; elsewhere orphans are reparented to the guard. Outside a
namespace, a guard that is itself killed by SIGKILL cannot ensure it; the host still dies with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

from . import code_loading, frames, host
from .kernel import containment, semaphores, syscalls
from .kernel.usage import ResourceUsage, descendants
from .removal import remove

_BUSY_SECONDS, _QUIET_SECONDS = 0.05, 0.2
"""Interval of the checks of resource usage: if the host has child processes, and if it has none."""
_PAUSE_FACTOR = 4
"""The pause after a check is at least this many times its duration: checking takes at most a fifth of a core, however
many processes there are."""
_END_SECONDS, _POLL_SECONDS = 5.0, 0.005
"""Time limit for killing all processes; interval of the polls for their end, or for a connection that waits."""
_CLOSED = "it closed its socket to the service"
WAITED_FOR = (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1)


class HostGuard:
    def __init__(self, cell: containment.Cell, host_pid: int, channel: int, service: int) -> None:
        """`channel`: file descriptor, in the host, of its socket to the service; `service`: the service's pid."""
        self._cell = cell
        self._host = host_pid
        self._service = service
        self._status: int | None = None
        self._connector = containment.connector(cell)
        self._usage = ResourceUsage(cell, self._connector)
        self._channel = f"{host_pid}/fd/{channel}"
        self._closed = False
        self.fault: str | None = None
        """Why the guard ended the host, if it did."""
        self._poll = select.poll()
        self._poll.register(syscalls.file_of_signals(WAITED_FOR), select.POLLIN)
        if self._connector is not None:
            self._poll.register(self._connector.file, select.POLLIN)

    def watch(self) -> int:
        """Returns the host's wait status, when every process below has ended.

        The service removes the scratch folder, since that may take long; the guard does only if the service has ended.
        """
        try:
            return self._watch()
        finally:
            self._end_all()
            if self._cell.init is None and os.getppid() != self._service:  # in a namespace it was a file system
                remove(self._cell.scratch)

    def _watch(self) -> int:
        next_check = time.monotonic() + _QUIET_SECONDS
        while True:
            signals = self._wait(next_check)
            self._reap()
            if self._status is not None:
                if self._cell.group is not None and (fault := self._cell.group.out_of_memory()) is not None:
                    self._report_fault(fault)
                return self._status
            if signal.SIGTERM in signals:
                return signal.SIGKILL
            if signal.SIGUSR1 in signals:
                self._usage.grant()
            if not signals and time.monotonic() < next_check:
                continue
            began = time.monotonic()
            below = self._usage.processes()
            fault = self._usage.too_much(below) or self._socket_closed()
            if fault is not None:
                self._report_fault(fault)
                return signal.SIGKILL
            period = _BUSY_SECONDS if len(below) > 1 else _QUIET_SECONDS
            ended = time.monotonic()
            next_check = ended + max(period, _PAUSE_FACTOR * (ended - began))

    def _report_fault(self, fault: str) -> None:
        self.fault = fault
        with contextlib.suppress(BrokenPipeError):  # the service has just ended
            os.write(2, f"{fault}\n".encode())

    def _wait(self, until: float) -> set[int]:
        """Wait for signals until `until`, and return them; meanwhile answer the host's requests for connections."""
        connector = self._connector
        left = max(until - time.monotonic(), 0.0)
        if connector is not None and connector.waiting:
            left = min(left, _POLL_SECONDS)
        ready = dict(self._poll.poll(left * 1000))
        if connector is not None:
            file = connector.file
            active = connector.answer(ready.get(file, 0))
            if not active or connector.file != file:
                self._poll.unregister(file)
                self._connector = connector if active else None
            if active and connector.file != file:
                self._poll.register(connector.file, select.POLLIN)
        signals = set()
        while (info := signal.sigtimedwait(WAITED_FOR, 0)) is not None:
            signals.add(info.si_signo)
        return signals

    def _socket_closed(self) -> str | None:
        """The fault if the host has closed its socket but is alive. It must be seen twice in a row, because a host that
        is just ending closes its files too."""
        try:
            closed = not os.readlink(self._channel, dir_fd=self._cell.proc).startswith("socket:")
        except PermissionError:
            return None
        except FileNotFoundError:
            closed = True
        before, self._closed = self._closed, closed
        return _CLOSED if before and closed else None

    def _reap(self) -> bool:
        """Reap the children that have ended, and record the host's status. Whether any children are left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == self._host:
                    self._status = ended[1]
        except ChildProcessError:
            return False
        return True

    def _end_all(self) -> None:
        if self._cell.group is not None:
            self._cell.group.end()
        deadline = time.monotonic() + _END_SECONDS
        if self._cell.init is not None:
            _signal(self._cell.init.pid, signal.SIGKILL)
            if self._status is None:
                _signal(self._host, signal.SIGKILL)
            while self._reap() and time.monotonic() < deadline:  # process 1 ends when all others have
                signal.sigtimedwait([signal.SIGCHLD], _POLL_SECONDS)
            return
        stopped: set[int] = set()
        while (left := set(descendants(os.getpid()))) and time.monotonic() < deadline:
            # All are stopped first: a stopped process cannot fork, so none escapes between two polls.
            for pid in left:
                _signal(pid, signal.SIGKILL if left <= stopped else signal.SIGSTOP)
            stopped = left
            signal.sigtimedwait([signal.SIGCHLD], _POLL_SECONDS)
            self._reap()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_like(status: int) -> None:
    """End like the host did, so that the service sees its status or signal. Never returns."""
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
    syscalls.signal_at_death_of_parent(signal.SIGTERM)
    syscalls.adopt_orphans()
    if os.getppid() != service:
        return
    channel = host.Channel()
    body = channel.receive()
    if body is None:
        return
    setup = frames.decode_request(body)
    assert isinstance(setup, frames.Setup)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)  # until here SIGTERM ends the guard at once
    try:
        cell = containment.enclose(setup, Path.cwd())
    except syscalls.ContainmentFailed as fault:
        channel.send(frames.Broken(str(fault), ""))
        return
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR)
        host.run(channel, cell)
    number = channel.fileno()
    channel.close()
    _end_like(HostGuard(cell, pid, number, service).watch())


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a process that the user's code spawned by multiprocessing
    semaphores.provide()
    code_loading.find_in_child()
