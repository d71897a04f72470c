"""A piece of our own work with a user's parameters, done once and held like a user's function.

    this process ─► fork: a guard ─► enclose ─► fork: confined, does the work ─► its answer, as bytes
                    └ see `guard`; ends with this process

What the work needs open (a file to write to, say) is opened before and passed on; all else is as the level has it.
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

_MOST_BYTES = 1 << 20


class _End(msgspec.Struct):
    answer: bytes | None = None
    fault: str = ""
    """Why the guard ended it, or that the machine does not hold it."""


class ContainedEnd(Exception):
    """The work took more than its share, or its process ended without an answer; the message says which."""


def run(setup: frames.Setup, work: Callable[[], bytes]) -> bytes:
    """What `work` returns; raises `ContainedEnd`, also where the machine does not hold it at that level."""
    scratch = ScratchFolder()
    ours, theirs = socket.socketpair()
    this = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        scratch.let_go()
        _guard(setup, scratch.path, theirs, work, this)
    theirs.close()
    with ours, ours.makefile("rb") as stream:
        said = stream.read(_MOST_BYTES)
    os.waitpid(child, 0)
    scratch.remove()
    end = msgspec.json.decode(said, type=_End) if said else _End(fault="its process ended without an answer")
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
        watching = guard.HostGuard(cell, host, channel.fileno(), parent)
        watching.watch()
        if watching.fault is not None:
            channel.sendall(msgspec.json.encode(_End(fault=watching.fault)))
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
