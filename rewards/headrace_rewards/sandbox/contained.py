"""Runs a task of Headrace's own with a user's parameters once, in the same sandbox as a user's function.

    this process ─► fork: a guard ─► enclose ─► fork: confined, does the work ─► its answer, as bytes
                    └ see `guard`; ends with this process

Files that the task writes to are opened before, and inherited; everything else is subject to the sandbox level.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from . import frames, guard
from .kernel import containment, syscalls
from .scratch import ScratchFolder

_MAX_BYTES = 1 << 20


class _End(msgspec.Struct):
    answer: bytes | None = None
    fault: str = ""
    """Why the guard ended the task, or that this machine does not support the level."""


class ContainedEnd(Exception):
    """The task exceeded a limit, or its process ended without an answer; the message says which."""


def run(setup: frames.Setup, work: Callable[[], bytes]) -> bytes:
    """Run `work` in the sandbox, and return its result. Raises `ContainedEnd`, also if this machine does not support
    the level."""
    scratch = ScratchFolder()
    ours, theirs = socket.socketpair()
    this = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        scratch.close_in_child()
        _guard(setup, scratch.path, theirs, work, this)
    theirs.close()
    with ours, ours.makefile("rb") as stream:
        body = stream.read(_MAX_BYTES)
    os.waitpid(child, 0)
    scratch.remove()
    end = msgspec.json.decode(body, type=_End) if body else _End(fault="its process ended without an answer")
    if end.answer is None:
        raise ContainedEnd(end.fault)
    return end.answer


def _guard(
    setup: frames.Setup, scratch: Path, channel: socket.socket, work: Callable[[], bytes], parent: int
) -> NoReturn:
    try:
        syscalls.signal_at_death_of_parent(signal.SIGTERM)
        syscalls.adopt_orphans()
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, guard.WAITED_FOR)
        cell = containment.enclose(setup, scratch)
        host = os.fork()
        if host == 0:
            _work(cell, channel, work)
        host_guard = guard.HostGuard(cell, host, channel.fileno(), parent)
        host_guard.watch()
        if host_guard.fault is not None:
            channel.sendall(msgspec.json.encode(_End(fault=host_guard.fault)))
    except syscalls.ContainmentFailed as fault:
        channel.sendall(msgspec.json.encode(_End(fault=str(fault))))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _work(cell: containment.Cell, channel: socket.socket, work: Callable[[], bytes]) -> NoReturn:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.WAITED_FOR)
        os.setsid()
        os.environ.update(dict.fromkeys(("HOME", "TMPDIR"), str(cell.scratch)))
        tempfile.tempdir = None
        containment.confine(cell)
        answer = work()
        channel.sendall(msgspec.json.encode(_End(answer=answer)))
    except syscalls.ContainmentFailed as fault:
        channel.sendall(msgspec.json.encode(_End(fault=str(fault))))
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(0)
