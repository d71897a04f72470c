"""Namespaces of the host: its own processes, its own network (empty), its own files. See namespaces(7).

    guard   unshare ─► fork init ─────────────────► fork host
                          │ mounts the files, reports to the guard, then only waits for the guard's end
                          └ process 1: when it ends, the kernel kills every process that is left in there

Without root, a user namespace is added, in which the service's user is mapped to itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import syscalls
from .syscalls import ContainmentFailed

_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_KERNEL_MEMORY_FILES = (
    "kallsyms",
    "kcore",
    "keys",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "slabinfo",
    "timer_list",
    "vmallocinfo",
)
"""Files of /proc that reveal the kernel's memory, and that CAP_DAC_READ_SEARCH could read."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Files:
    """Files of the mount namespace: `readable` at their own paths, and two writable folders of `room` bytes each."""

    readable: Sequence[Path]
    scratch: Path
    room: int
    owner: tuple[int, int]
    """User and group of the writable folders."""


@dataclass(frozen=True, slots=True)
class Init:
    """Process 1 of the namespace, by its outside number. It ends when `lifeline` is closed, at the latest with us."""

    pid: int
    lifeline: int


def enter(files: Files) -> Init:
    """Enter new namespaces: the files apply to this process and its later children, the others to its later children.
    Raises `ContainmentFailed`."""
    flags = (
        syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNET
    )
    user, group = os.getuid(), os.getgid()
    if syscalls.has_capability(syscalls.CAP_SYS_ADMIN):
        syscalls.unshare(flags)
    elif user == 0:
        raise ContainmentFailed("root has no CAP_SYS_ADMIN here")
    else:
        syscalls.unshare(flags | syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    return _start_init(files)


def _start_init(files: Files) -> Init:
    lifeline, ours = os.pipe()
    report_reader, report_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        os.close(report_reader)
        _run_init(files, lifeline, report_writer)
    os.close(lifeline)
    os.close(report_writer)
    with os.fdopen(report_reader, "rb") as message:
        fault = message.read().decode("utf-8", "replace")
    if fault:
        os.waitpid(pid, 0)
        raise ContainmentFailed(fault)
    return Init(pid, ours)


def _run_init(files: Files, lifeline: int, report_writer: int) -> None:
    """Never returns. Signals from inside do not reach process 1; ended orphans are reaped by the kernel."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _build(files)
        for low, high in ((0, lifeline), (lifeline + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(low, high)  # the socket to the service among them: it closes with the host
        os.read(lifeline, 1)
    except BaseException as fault:  # reported to the guard, which raises it
        os.write(report_writer, f"its files could not be mounted: {fault}".encode())
    finally:
        os._exit(0)


def _build(files: Files) -> None:
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = str(files.scratch)
    syscalls.mount("headrace", root, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=1m")
    for path in files.readable:
        target = _place(root, path)
        syscalls.mount(str(path), target, None, syscalls.MS_BIND | syscalls.MS_REC)
    for device in _DEVICES:
        _place(root, Path("/dev", device))
    for name, place in _LINKS.items():
        os.symlink(place, f"{root}/dev/{name}")
    empty = {path: f"{root}{path}" for path in (Path("/proc"), SHARED_MEMORY, files.scratch)}
    for place in empty.values():
        os.makedirs(place, exist_ok=True)
    syscalls.make_read_only(root)
    for device in _DEVICES:
        syscalls.mount(f"/dev/{device}", f"{root}/dev/{device}", None, syscalls.MS_BIND)
    restricted = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("proc", empty[Path("/proc")], "proc", restricted | syscalls.MS_NOEXEC)
    for name in _KERNEL_MEMORY_FILES:
        if os.path.exists(f"{root}/proc/{name}"):
            syscalls.mount("/dev/null", f"{root}/proc/{name}", None, syscalls.MS_BIND)
    user, group = files.owner
    room = f"mode=700,size={files.room},nr_inodes={files.room >> 14},uid={user},gid={group}"
    for folder in (SHARED_MEMORY, files.scratch):
        syscalls.mount("headrace", empty[folder], "tmpfs", restricted, room)
    syscalls.enter_root(root)


def _place(root: str, path: Path) -> str:
    """Create an empty file or folder on which `path` can be mounted."""
    target = f"{root}{path}"
    if path.is_dir():
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab"):
            pass
    return target
