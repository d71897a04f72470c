"""The containment of a host, level by level; each level adds to the previous one.

    limits     limits.confine                      memory, files, processor time, processes
    filtered   another user (as root) · Landlock · seccomp · no gain of rights
    isolated   namespaces                          its own processes, network (none), files

The guard calls `enclose` before it forks the host; the host calls `confine` before it reads any of the user's code.

If the service is root, the host changes to a user id that nothing else has: then the kernel counts its processes (it
counts none of root's), and the host can neither signal nor trace the service's. It keeps one capability, to read the
files of its view whatever their modes are, because interpreters are under /root and reward files belong to root;
Landlock, the mount namespace and seccomp (`open_by_handle_at`) confine it to that view.
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
    """The user id that the host changes to; `None`: it does not change."""
    processes: int
    """`RLIMIT_NPROC`."""
    init: namespaces.Init | None
    door: connections.Door | None
    """For connections between the host's processes; `None` if no system calls are filtered."""
    proc: int
    """`/proc` opened by the guard: within a namespace `/proc` shows other process numbers."""
    guard: int
    """Process number of the guard; below `isolated` the host checks by it that the guard still lives."""
    group: control_groups.ControlGroup | None
    """Limits what all processes of the host use together; `None`: the guard counts."""


def enclose(setup: frames.Setup, scratch: Path) -> Cell:
    """Prepare the containment of a host that is forked next. Raises `ContainmentFailed` if the level is unavailable."""
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
    """The connector that makes the host's connections; the guard calls this after it forked the host.

    `None` if no system calls are filtered, or if access to the host's memory would let the host signal the guard.
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
    """Contain this process irrevocably. Raises `ContainmentFailed`."""
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
    """End this process when the guard ends; called after the change of users, which resets the signal."""
    syscalls.signal_at_death_of_parent(signal.SIGKILL)
    if cell.init is None and os.getppid() != cell.guard:  # too late for the signal
        os._exit(1)


def _lock_files(cell: Cell) -> None:
    """Restrict files by Landlock. In a mount namespace, which shows no other files, it is a second, optional layer."""
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
    own_entries = [Path("/proc/self").resolve(), *map(Path, ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat"))]
    devices = [Path("/dev", name) for name in ("zero", "full", "random", "urandom")]
    landlock.apply([*cell.files.readable, *own_entries, *devices], cell.files.listed, [cell.scratch, null])


def _unused_user() -> int:
    """A random user id from the upper half of those of this user namespace."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    start, _, count = max(ranges, key=lambda entry: entry[2])
    if count < 4:
        raise ContainmentFailed("this user namespace has no ids to spare")
    return start + count // 2 + secrets.randbelow(count // 4)
