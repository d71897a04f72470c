"""A process that has imported what checks import, and forks a fresh one for each of them.

    gateway ── control socket ─► server, which imports once and runs nothing of a question
                                   └─ fork ─► child: `python -m COMMAND`, as if it had just been started
      a message is a command and three sockets: the child's stdin and stdout, its stderr, and its *life*: over that the
      gateway is told the exit status, and by closing it the gateway ends the child

Invariants: no child has anything of another: each is forked from the same untouched server, reads its question itself,
and has no file open but its own three. When the gateway has ended, or the server, so have all children (the control
socket is closed; PR_SET_PDEATHSIG). The server has one thread when it forks, and none of its memory is a user's.

Reward code does not run here: its guard is started by exec, with a memory and an environment of its own.

    python -m headrace_gateway.limited_processes.fork_server MODULE[:FUNCTION]…     a socket as stdin

Functions are called once, at the first moment at which nobody has asked for anything for `IDLE_SECONDS`: what they find
out, every child would have to for itself.
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
    """Its pidfd, which can be read once it has ended."""
    life: socket.socket


class ForkingServer:
    """Forks until the control socket is closed."""

    def __init__(self, control: socket.socket, prepare: Sequence[Callable[[], None]] = ()) -> None:
        """`prepare`: what is done once it is idle."""
        self._control = control
        self._prepare = list(prepare)
        self._pid = os.getpid()
        self._poll = select.poll()  # holds no file of its own, which a child would close a second time
        self._poll.register(control, select.POLLIN)
        self._children = dict[int, _Child]()
        """By the number of each of its two files."""

    def serve(self) -> None:
        """Returns when the gateway has ended; the children end with this process."""
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
                    os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so the number is its own
            # last: a new child may get the numbers of files that were closed above
            if self._control.fileno() in ready and not self._asked():
                return

    def _asked(self) -> bool:
        """Whether there was a message, whose command runs now."""
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
    """In the child. Nothing of the server's frames above runs again."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != server:  # too late for the signal
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
    """Raises `RuntimeError` where something has left a thread: a child would not have it, nor what it holds."""
    if len(threads := os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"what was imported has left {len(threads) - 1} threads: that cannot be forked")
    gc.collect()
    gc.freeze()  # else each collection of a child would copy what it shares


def main() -> None:
    """Serve the socket that is standard input."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's, which closes the socket
    ForkingServer(control, preload(sys.argv[1:])).serve()


if __name__ == "__main__":
    main()
