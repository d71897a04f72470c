"""What a host and all processes that it started use together, measured in `/proc`.

    memory      pages of every process (what several have counts once) + files in its writable file systems, the
                unlinked too + shared memory that is no file + pipes and sockets, each as if it were full;
                not counted if the kernel limits it, see `control_groups`
    processes   with their threads
    processor   of each process since the unit began

If the first thread of a process has ended, `/proc` shows nothing under the process' own number, but everything under
that of a thread that still runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import connections, containment, namespaces
from .buffers import PIPE_BYTES, bytes_of_socket, open_files, open_in, shown, waiting_connections
from .seccomp import MAX_SHARED_BYTES

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
_OF_NO_FILE = b"/dev/zero (deleted)"
"""Name under which the kernel lists anonymous shared mappings."""


class ResourceUsage:
    """Resource usage of one host; `too_much` compares it with the limits."""

    def __init__(self, cell: containment.Cell, connector: connections.SocketConnector | None) -> None:
        """`connector` makes the connections of the host."""
        self._cell = cell
        self._connector = connector
        self._limits = cell.setup.limits
        self._spent: dict[int, float] = {}
        self._allowed = self._share_of_processor(self._limits.start_seconds)
        self._of_socket = max(bytes_of_socket(), PIPE_BYTES)

    def processes(self) -> list[int]:
        """Process numbers, as in `/proc`, of the host and all processes that it started."""
        if self._cell.init is None:
            return descendants(os.getpid())
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def grant(self) -> None:
        """Start a unit: processor time is counted from now on."""
        self._spent = {pid: _processor_seconds(pid) for pid in self.processes()}
        self._allowed = self._share_of_processor(self._cell.setup.timeout)

    def too_much(self, below: Sequence[int]) -> str | None:
        """An error message if a limit is exceeded, else `None`."""
        tasks = sum(_tasks(pid) for pid in below) if len(below) > 1 else 0
        if tasks > self._limits.processes:
            return f"{tasks} processes and threads ran at once; {self._limits.processes} are allowed"
        for pid in below:
            if _processor_seconds(pid) - self._spent.get(pid, 0.0) > self._allowed:
                return f"a process used more than {self._allowed:g} s of processor time"
        used = 0 if self._cell.group is not None else self._memory(below)
        if used > self._limits.memory_bytes:
            return f"its processes used {used} bytes of memory together; {self._limits.memory_bytes} are allowed"
        return None

    def _memory(self, below: Sequence[int]) -> int:
        """Bytes used. Stops at the first, cheap upper bound that is within the limit."""
        limit = self._limits.memory_bytes
        own = self._files() + self._waiting() + _shared_of_no_file(below)
        pages = sum(map(_resident, below))
        buffers = sum(map(open_files, below)) * self._of_socket
        if own + buffers + pages <= limit:
            return own + buffers + pages
        opened = open_in(below)
        buffers = len(opened.sockets) * self._of_socket + len(opened.pipes) * PIPE_BYTES
        if own + buffers + pages <= limit:
            return own + buffers + pages
        return own + buffers + sum(map(_share_of_memory, below))

    def _waiting(self) -> int:
        """Bytes in connections that were made and not accepted."""
        if self._connector is None or not self._connector.addresses:
            return 0
        with open(os.open("self/net/unix", os.O_RDONLY, dir_fd=self._cell.proc), "rb") as sockets:
            return waiting_connections(sockets.read(), self._connector.addresses) * self._of_socket

    def _files(self) -> int:
        """Bytes in the host's two file systems; below `isolated` its folder is on the machine's disk: 0."""
        if self._cell.init is None:
            return 0
        systems = [os.statvfs(folder) for folder in (self._cell.scratch, namespaces.SHARED_MEMORY)]
        return sum((system.f_blocks - system.f_bfree) * system.f_frsize for system in systems)

    def _share_of_processor(self, seconds: float) -> float:
        return seconds * self._limits.cpu_per_second + self._limits.cpu_seconds


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    open_pids = [pid]
    while open_pids:
        below = list(_children(open_pids.pop()))
        found += below
        open_pids += below
    return found


def _children(pid: int) -> Iterator[int]:
    """The children of all threads of a process."""
    folder = f"/proc/{pid}/task"
    try:
        tasks = os.listdir(folder)
    except _GONE:
        return
    for task in tasks:
        try:
            with open(f"{folder}/{task}/children", "rb") as children:
                yield from map(int, children.read().split())
        except _GONE:
            continue


def _tasks(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except _GONE:
        return 0


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except _GONE:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(pid: int) -> int:
    for folder in shown(pid):
        try:
            pages = int((folder / "statm").read_bytes().split()[1])
        except _GONE:
            continue
        if pages:
            return pages * _PAGE
    return 0


def _share_of_memory(pid: int) -> int:
    for folder in shown(pid):
        try:
            lines = (folder / "smaps_rollup").read_bytes().splitlines()
        except _GONE:  # the thread has ended
            continue
        except PermissionError:
            return _resident(pid)
        found = [int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:")]
        if found:
            return sum(found)
    return 0


def _shared_of_no_file(pids: Sequence[int]) -> int:
    """Bytes of shared anonymous memory, mapped or not: each piece counts with its maximum size."""
    found = set()
    for pid in pids:
        for folder in shown(pid):
            try:
                lines = (folder / "maps").read_bytes().splitlines()
            except (*_GONE, PermissionError):
                continue
            found |= {line.split(maxsplit=5)[4] for line in lines if line.endswith(_OF_NO_FILE)}
            if lines:
                break
    return len(found) * MAX_SHARED_BYTES
