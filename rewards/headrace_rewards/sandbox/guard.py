"""The process between service and host: `python -m headrace_rewards.sandbox.guard SERVICE_PID`, a socket as stdin.

    Setup from the socket ─► enclose ─► fork ─┬─► host: confined, serves calls on the socket
                                              └─► watch, until one of
         the host ended                                   ─► end all that is left, end in the same way
         the service ended, or asked for it (SIGTERM)     ─► end host and all
         all together use too much, see `usage`           ─► say so on stderr, end host and all
         the host closed the socket, and lives            ─► the same
    meanwhile it connects unix sockets for the host, see `connections`; SIGUSR1 of the service says that a unit begins

Invariant: when it has ended, so has every process that the host started, also one that left its session or whose
parent ended. In a namespace the kernel sees to that; elsewhere orphans come to the guard. Only a guard that is itself
killed with SIGKILL cannot keep that promise outside a namespace; the host dies with it all the same.
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
"""Between two looks at what is used: with processes beside the host, and without."""
_SHARE = 4
"""A look at many processes takes long: at most a fifth of a core goes into looking."""
_END_SECONDS, _LOOK_SECONDS = 5.0, 0.005
"""For the end of all that is left, and between two looks at it, or at a connection that has to wait."""
_CLOSED = "it closed its socket to the service"
WAITED_FOR = (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1)


class HostGuard:
    def __init__(self, cell: containment.Cell, host_pid: int, channel: int, service: int) -> None:
        """`channel` is the number by which the host knows its socket to the service; `service` is a process."""
        self._cell = cell
        self._host = host_pid
        self._service = service
        self._status: int | None = None
        self._doorkeeper = containment.doorkeeper(cell)
        self._usage = ResourceUsage(cell, self._doorkeeper)
        self._channel = f"{host_pid}/fd/{channel}"
        self._closed = False
        self.fault: str | None = None
        """Why the host was ended, where the guard ended it."""
        self._poll = select.poll()
        self._poll.register(syscalls.file_of_signals(WAITED_FOR), select.POLLIN)
        if self._doorkeeper is not None:
            self._poll.register(self._doorkeeper.file, select.POLLIN)

    def watch(self) -> int:
        """The wait status of the host; every process below is gone then.

        The scratch folder is the service's to remove, whatever time it takes, unless that has ended.
        """
        try:
            return self._watch()
        finally:
            self._end_all()
            if self._cell.init is None and os.getppid() != self._service:  # in a namespace it was a file system
                remove(self._cell.scratch)

    def _watch(self) -> int:
        look_at = time.monotonic() + _QUIET_SECONDS
        while True:
            heard = self._wait(look_at)
            self._reap()
            if self._status is not None:
                if self._cell.group is not None and (fault := self._cell.group.out_of_memory()) is not None:
                    self._blame(fault)
                return self._status
            if signal.SIGTERM in heard:
                return signal.SIGKILL
            if signal.SIGUSR1 in heard:
                self._usage.grant()
            if not heard and time.monotonic() < look_at:
                continue
            began = time.monotonic()
            below = self._usage.processes()
            fault = self._usage.too_much(below) or self._deaf()
            if fault is not None:
                self._blame(fault)
                return signal.SIGKILL
            period = _BUSY_SECONDS if len(below) > 1 else _QUIET_SECONDS
            ended = time.monotonic()
            look_at = ended + max(period, _SHARE * (ended - began))

    def _blame(self, fault: str) -> None:
        self.fault = fault
        with contextlib.suppress(BrokenPipeError):  # the service has just ended
            os.write(2, f"{fault}\n".encode())

    def _wait(self, until: float) -> set[int]:
        """The signals that came; meanwhile what the host asks for is answered."""
        doorkeeper = self._doorkeeper
        left = max(until - time.monotonic(), 0.0)
        if doorkeeper is not None and doorkeeper.waiting:
            left = min(left, _LOOK_SECONDS)
        ready = dict(self._poll.poll(left * 1000))
        if doorkeeper is not None:
            file = doorkeeper.file
            going_on = doorkeeper.answer(ready.get(file, 0))
            if not going_on or doorkeeper.file != file:
                self._poll.unregister(file)
                self._doorkeeper = doorkeeper if going_on else None
            if going_on and doorkeeper.file != file:
                self._poll.register(doorkeeper.file, select.POLLIN)
        heard = set()
        while (found := signal.sigtimedwait(WAITED_FOR, 0)) is not None:
            heard.add(found.si_signo)
        return heard

    def _deaf(self) -> str | None:
        """Whether the host can answer no more, though it lives: seen twice, since one that ends closes its files."""
        try:
            closed = not os.readlink(self._channel, dir_fd=self._cell.proc).startswith("socket:")
        except PermissionError:
            return None
        except FileNotFoundError:
            closed = True
        before, self._closed = self._closed, closed
        return _CLOSED if before and closed else None

    def _reap(self) -> bool:
        """Whether any children are left, after those that have ended were reaped; notes how the host ended."""
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
                signal.sigtimedwait([signal.SIGCHLD], _LOOK_SECONDS)
            return
        stopped: set[int] = set()
        while (left := set(descendants(os.getpid()))) and time.monotonic() < deadline:
            # a stopped process forks no more, and still counts among those allowed: nothing escapes between two looks
            for pid in left:
                _signal(pid, signal.SIGKILL if left <= stopped else signal.SIGSTOP)
            stopped = left
            signal.sigtimedwait([signal.SIGCHLD], _LOOK_SECONDS)
            self._reap()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


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
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)  # until here SIGTERM ended it at once
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
elif __name__ == "__mp_main__":  # in a process that the user's code starts anew, for which this is the main module
    semaphores.provide()
    code_loading.find_in_child()
