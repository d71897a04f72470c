"""What holds a host, level by level; each adds to the one before.

    limits     limits.confine                      memory, files, processor time, processes
    filtered   another user (as root) · Landlock · seccomp · no gain of rights
    isolated   namespaces                          its own processes, network (none), files

`enclose` is the guard's part, before the host is forked; `confine` is the host's, before a line of the user's is read.

As root the host becomes a user that nobody else is: then the kernel counts its processes (it counts none of root's),
and it can neither signal nor trace the service's. It keeps one capability, to read what the view shows it whatever the
files' modes are, because interpreters lie under /root and reward files belong to root; Landlock, the mount namespace
and seccomp (`open_by_handle_at`) are what confines that.
"""

from __future__ import annotations

import os
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path

from .. import frames
from . import connections, control_groups, landlock, namespaces, readable_paths, resource_limits, seccomp, syscalls
from .syscalls import ContainmentFailed


@dataclass(frozen=True, slots=True)
class Cell:
    """What the guard prepared for its host."""

    setup: frames.Setup
    scratch: Path
    files: readable_paths.View
    user: int | None
    """Whom the host becomes; `None`: it stays who it is."""
    processes: int
    """`RLIMIT_NPROC`."""
    init: namespaces.Init | None
    door: connections.Door | None
    """For connections between its processes; `None` where nothing is filtered."""
    proc: int
    """`/proc` as the guard found it: in a namespace it shows other numbers."""
    guard: int
    """Its process number; below `isolated` the host sees by it whether its guard still lives."""
    group: control_groups.ControlGroup | None
    """Holds what all its processes use together; `None`: the guard counts."""


def enclose(setup: frames.Setup, scratch: Path) -> Cell:
    """For a host that is forked next; raises `ContainmentFailed` where the machine does not offer the level."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    group = control_groups.make(setup.limits)
    if setup.level == "limits":
        processes = resource_limits.tasks_of(os.getuid()) + setup.limits.processes
        return Cell(setup, scratch, readable_paths.View([], []), None, processes, None, None, proc, os.getpid(), group)
    syscalls.require_known_architecture()
    hidden = [*map(Path, setup.hidden), scratch]
    own = setup.beside if setup.source is not None else setup.path
    files = readable_paths.told(None if own is None else Path(own), hidden, Path(setup.home))
    root, isolated = os.getuid() == 0, setup.level == "isolated"
    user = _unused_user() if root else None
    share = setup.limits.processes
    processes = share if root or isolated else resource_limits.tasks_of(os.getuid()) + share
    owner = (os.getuid(), os.getgid()) if user is None else (user, user)
    init = None
    door = connections.Door.make()
    try:
        if isolated:
            init = namespaces.enter(namespaces.Files(files.readable, scratch, setup.limits.scratch_bytes, owner))
        elif user is not None:
            os.chown(scratch, *owner)
    except OSError as fault:
        raise ContainmentFailed(
            f"{'no namespaces' if isolated else 'no folder of its own'}: {fault.strerror}"
        ) from None
    return Cell(setup, scratch, files, user, processes, init, door, proc, os.getpid(), group)


def connector(cell: Cell) -> connections.SocketConnector | None:
    """Who makes the host's connections for it; the guard's part, after the host was forked.

    `None` where nothing is filtered, and where looking into the host would let it send signals to the guard.
    """
    if cell.door is None:
        return None
    if cell.user is None or cell.door.traces or cell.init is not None or landlock.holds_signals():
        return connections.SocketConnector(cell.door, cell.proc, _writable(cell), cell.user)
    cell.door.ours.close()  # and with it the host's file: every `connect` fails
    return None


def _writable(cell: Cell) -> list[Path]:
    return [cell.scratch] if cell.init is None else [cell.scratch, namespaces.SHARED_MEMORY]


def confine(cell: Cell) -> None:
    """Hold this process, for good; raises `ContainmentFailed`."""
    if cell.group is not None:
        cell.group.join()
    os.close(cell.proc)
    if cell.init is not None:
        os.close(cell.init.lifeline)  # the guard's alone: process 1 ends when nobody holds it
    os.chdir(cell.scratch)
    os.umask(0o077)
    if cell.setup.level == "limits":
        _die_with(cell)
        resource_limits.confine(cell.setup.limits, cell.processes)
        return
    try:
        if cell.user is not None:
            syscalls.become(cell.user, reading_all=syscalls.has_capability(syscalls.CAP_DAC_READ_SEARCH))
        else:
            syscalls.drop_capabilities()
        syscalls.be_traceable()  # by its guard, which reads the addresses that it connects to
        _die_with(cell)
        resource_limits.confine(cell.setup.limits, cell.processes)
        syscalls.gain_nothing_by_exec()
        _lock_files(cell)
        listener = seccomp.apply()
        assert cell.door is not None
        cell.door.hand_over(listener)
    except OSError as fault:
        raise ContainmentFailed(fault.strerror) from None


def _die_with(cell: Cell) -> None:
    """With the guard; after the change of users, which takes the signal back."""
    syscalls.signal_at_death_of_parent(signal.SIGKILL)
    if cell.init is None and os.getppid() != cell.guard:  # too late for the signal
        os._exit(1)


def _lock_files(cell: Cell) -> None:
    """The mount namespace already shows nothing else; Landlock is then the second layer, where there is one."""
    null = Path("/dev/null")
    if cell.init is not None:
        try:
            landlock.version()
        except OSError:
            return
        landlock.apply([Path("/")], [], [*_writable(cell), null])
        return
    if cell.user is None and landlock.version() < landlock.TRUNCATION_SINCE:
        raise ContainmentFailed(
            f"Landlock {landlock.version()} does not hold truncation; that takes Linux 6.2, or root"
        )
    of_itself = [Path("/proc/self").resolve(), *map(Path, ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat"))]
    devices = [Path("/dev", name) for name in ("zero", "full", "random", "urandom")]
    landlock.apply([*cell.files.readable, *of_itself, *devices], cell.files.listed, [cell.scratch, null])


def _unused_user() -> int:
    """From the upper half of the ids that this (user) namespace has."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    start, _, count = max(ranges, key=lambda entry: entry[2])
    if count < 4:
        raise ContainmentFailed("this user namespace has no ids to spare")
    return start + count // 2 + secrets.randbelow(count // 4)
