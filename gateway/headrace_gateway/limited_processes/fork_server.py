"""A server process that has imported the slow libraries of the checks, and forks a child for each check.

    gateway ── control socket ─► server, which imports once and processes no question itself
                                   └─ fork ─► child: `python -m COMMAND`, as if it had just been started
      a message is a command and three sockets: the child's stdin and stdout, its stderr, and its *life*: on it the
      server sends the exit status, and the gateway kills the child by closing it

Invariants: children share no data: each is forked from the same unchanged server, reads its question itself, and has no
open file but its own three. When the gateway or the server has ended, so have all children (the control socket is
closed; PR_SET_PDEATHSIG). The server has a single thread when it forks, and no user's data in its memory.

Reward code does not run here: its guard is started by exec, with memory and an environment of its own.

    python -m headrace_gateway.limited_processes.fork_server MODULE[:FUNCTION]…     a socket as stdin

Each FUNCTION is called once, when no request has come for `IDLE_SECONDS` for the first time. It computes what every
child would otherwise compute for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

COMMAND_BYTES = 1024
IDLE_SECONDS = 2.0
_FILES = 3
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    process: int
    """The child's pidfd, which becomes readable when the child has ended."""
    life: socket.socket


class ForkingServer:
    """Forks a child per message until the control socket is closed."""

    def __init__(self, control: socket.socket, prepare: Sequence[Callable[[], None]] = ()) -> None:
        """`prepare`: functions that are called once the server is idle."""
        self._control = control
        self._prepare = list(prepare)
        self._pid = os.getpid()
        self._poll = select.poll()  # unlike epoll, it has no file descriptor that a child would close too
        self._poll.register(control, select.POLLIN)
        self._children = dict[int, _Child]()
        """Children by each of their two file descriptors."""

    def serve(self) -> None:
        """Serve until the gateway closes the socket; the children end with this process."""
        while True:
            ready = {file for file, _ in self._poll.poll(IDLE_SECONDS * 1000 if self._prepare else None)}
            if not ready:
                self._prepare.pop(0)()
                make_forkable()
            for file in ready - {self._control.fileno()}:
                child = self._children.get(file)
                if child is None:  # reaped in this round
                    continue
                if file == child.process:
                    self._reap(child)
                else:  # closed by the gateway
                    self._poll.unregister(file)
                    os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so that its pid cannot be another process's
            # Requests are last, because a new child may reuse the descriptors that were closed above.
            if self._control.fileno() in ready and not self._asked():
                return

    def _asked(self) -> bool:
        """Read a message and fork its child; False if the gateway has closed the socket."""
        command, files, _, _ = socket.recv_fds(self._control, COMMAND_BYTES, _FILES)
        if not command:
            return False
        data, errors, life = files
        try:
            pid = os.fork()
        except OSError as fault:
            os.write(errors, f"no process could be forked: {fault.strerror}".encode())
            os.write(life, b"1")
            for file in files:
                os.close(file)
            return True
        if pid == 0:
            _run(command.decode(), data, errors, self._pid)
        os.close(data)
        os.close(errors)
        child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=life))
        for file in (child.process, life):
            self._children[file] = child
            self._poll.register(file, select.POLLIN)
        return True

    def _reap(self, child: _Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        for file in (child.process, child.life.fileno()):
            del self._children[file]
            with contextlib.suppress(KeyError):  # closed by the gateway
                self._poll.unregister(file)
        os.close(child.process)
        with contextlib.suppress(OSError):  # the gateway no longer asks
            child.life.send(str(os.waitstatus_to_exitcode(status)).encode(), socket.MSG_NOSIGNAL)
        child.life.close()


def _run(command: str, data: int, errors: int, server: int) -> NoReturn:
    """Run the command in the child, and exit. Never returns into the server's code."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != server:  # the server ended before the signal was set up
            os._exit(status)
        for file, number in ((data, 0), (data, 1), (errors, 2)):
            os.dup2(file, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module, *arguments = command.split()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def preload(names: Sequence[str]) -> list[Callable[[], None]]:
    """Import the modules; returns the functions."""
    named = [name.partition(":") for name in names]
    modules = [(importlib.import_module(module), function) for module, _, function in named]
    make_forkable()
    return [getattr(module, function) for module, function in modules if function]


def make_forkable() -> None:
    """Raises `RuntimeError` if an import has started a thread: a child would lack it, but inherit the locks it
    holds."""
    if len(threads := os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"what was imported has left {len(threads) - 1} threads: that cannot be forked")
    gc.collect()
    gc.freeze()  # so that garbage collections in children do not copy shared pages


def main() -> None:
    """Serve the socket on stdin."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the gateway, which closes the socket
    ForkingServer(control, preload(sys.argv[1:])).serve()


if __name__ == "__main__":
    main()
