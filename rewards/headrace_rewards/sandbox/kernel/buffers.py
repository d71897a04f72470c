"""Memory of pipes and sockets, which belongs to no process: an upper bound, from the files that processes have open.

A pipe or socket counts as if it were full. A connection that nobody has accepted yet may be open in no process, because
the process that made it has written and closed it: such connections are counted from the list of all sockets of the
network namespace.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
PIPE_BYTES = 16 * os.sysconf("SC_PAGE_SIZE")
"""Size of every pipe; the filter of system calls refuses to change it."""


class Open(NamedTuple):
    """Pipes (device and inode number) and sockets (inode number) that processes have open, each once."""

    pipes: set[tuple[int, int]]
    sockets: set[int]


def bytes_of_socket() -> int:
    """Maximum bytes in a socket: its buffer, whose size the filter of system calls keeps as it was, and one piece."""
    try:
        buffer = int(Path("/proc/sys/net/core/wmem_default").read_text())
    except OSError:  # older kernels do not show it in a network namespace
        buffer = 212_992
    return buffer * 3 // 2


def shown(pid: int) -> Iterator[Path]:
    """The folders in `/proc` of a process: its own, and that of each of its threads."""
    yield Path(f"/proc/{pid}")
    try:
        yield from Path(f"/proc/{pid}/task").iterdir()
    except _GONE:
        return


def open_files(pid: int) -> int:
    """Number of files that the process has open."""
    for folder in shown(pid):
        try:
            found = len(os.listdir(folder / "fd"))
        except (*_GONE, PermissionError):
            continue
        if found:
            return found
    return 0


def open_in(pids: Sequence[int]) -> Open:
    """Pipes and sockets that the processes have open, named pipes included."""
    found = Open(set(), set())
    for pid in pids:
        for status in _files(pid):
            if stat.S_ISFIFO(status.st_mode):
                found.pipes.add((status.st_dev, status.st_ino))
            elif stat.S_ISSOCK(status.st_mode):
                found.sockets.add(status.st_ino)
    return found


def waiting_connections(table: bytes, addresses: set[bytes]) -> int:
    """Number of connections that nobody has accepted, in a table of a network namespace's sockets (`/proc/net/unix`).

    Such a socket has no inode number, and shows the address of its listener. `addresses` are those to which connections
    were made; addresses to which nothing is bound any more are removed from the set.
    """
    found = [row for row in (line.split(maxsplit=7) for line in table.split(b"\n")) if len(row) == 8]
    addresses &= {row[7].strip() for row in found}
    return sum(row[6] == b"0" and row[7].strip() in addresses for row in found)


def as_listed(address: str | bytes) -> bytes | None:
    """An address in the form of that table; `None` if it contains a line break, and cannot be found there."""
    listed = os.fsencode(address)
    return None if b"\n" in listed else listed.strip() or None


def _files(pid: int) -> Iterator[os.stat_result]:
    for folder in shown(pid):
        found = False
        try:
            for entry in os.scandir(folder / "fd"):
                found = True
                yield os.stat(entry.path)
        except (*_GONE, PermissionError):
            continue
        if found:
            return
