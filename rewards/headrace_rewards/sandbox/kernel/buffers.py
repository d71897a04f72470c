"""What waits in pipes and sockets belongs to no process: the most that it can be, by what processes have open.

A pipe or socket counts as if it were full. A connection that nobody has accepted yet is open in no process, also after
the one that made it has written and left: it is found among all sockets of the network namespace.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
PIPE_BYTES = 16 * os.sysconf("SC_PAGE_SIZE")
"""Of every pipe: the filter of system calls leaves its size as it is made."""


class Open(NamedTuple):
    """Pipes and sockets of several processes, each once, by the numbers of their files."""

    pipes: set[tuple[int, int]]
    sockets: set[int]


def bytes_of_socket() -> int:
    """The most that can wait in one: its buffer, which the filter of system calls leaves as it was, and one piece."""
    try:
        buffer = int(Path("/proc/sys/net/core/wmem_default").read_text())
    except OSError:  # older kernels do not show it in a network namespace
        buffer = 212_992
    return buffer * 3 // 2


def shown(pid: int) -> Iterator[Path]:
    """Where the kernel shows a process: itself, and each of its threads."""
    yield Path(f"/proc/{pid}")
    try:
        yield from Path(f"/proc/{pid}/task").iterdir()
    except _GONE:
        return


def open_files(pid: int) -> int:
    """Number of its open files."""
    for folder in shown(pid):
        try:
            found = len(os.listdir(folder / "fd"))
        except (*_GONE, PermissionError):
            continue
        if found:
            return found
    return 0


def open_in(pids: Sequence[int]) -> Open:
    """What the processes have open; a named pipe is one, too."""
    found = Open(set(), set())
    for pid in pids:
        for status in _files(pid):
            if stat.S_ISFIFO(status.st_mode):
                found.pipes.add((status.st_dev, status.st_ino))
            elif stat.S_ISSOCK(status.st_mode):
                found.sockets.add(status.st_ino)
    return found


def waiting_connections(table: bytes, addresses: set[bytes]) -> int:
    """How many nobody has accepted, of a network namespace's sockets (`/proc/net/unix`).

    Such a socket has no file, and shows the address of its listener: one of `addresses`, to which connections were
    made. Those that nothing is bound to any more are taken out of it.
    """
    found = [row for row in (line.split(maxsplit=7) for line in table.split(b"\n")) if len(row) == 8]
    addresses &= {row[7].strip() for row in found}
    return sum(row[6] == b"0" and row[7].strip() in addresses for row in found)


def as_listed(address: str | bytes) -> bytes | None:
    """An address as it is found in that list; `None` of one that breaks its lines."""
    shown_as = os.fsencode(address)
    return None if b"\n" in shown_as else shown_as.strip() or None


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
