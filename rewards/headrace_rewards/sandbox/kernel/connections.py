"""Connections to unix sockets, which a host may make only to its own processes: `multiprocessing` needs them.

    a process below ── connect(2) ──► stopped by the filter ─► the guard
                                                             reads the address from its memory
                    ◄─── 0, or an error ───────────────────  connects that very socket, or refuses

A filter of system calls sees numbers, not the address that a pointer leads to, and Landlock does not check pathname
sockets. So the filter passes each `connect` to the guard (seccomp_unotify(2)). Sockets in the folders that the host may
write to are allowed, because only the host can listen there. Abstract names are refused. The guard connects by an open
handle on the socket's file, so that an address or a link that changes meanwhile has no effect.

The guard never waits for a connection, because it has to watch resources: if the listener's queue is full, it tries
again later. If the kernel or the container does not allow all this, `connect` fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import buffers, syscalls

_RECEIVE, _ANSWER, _STILL_VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTICE = struct.Struct("=QIIiIQ6Q")
"""`struct seccomp_notif`: id, thread, flags; number, architecture, instruction; arguments."""
_REPLY = struct.Struct("=QqiI")
_TIME = struct.Struct("@ll")
_MIN_WAIT = _TIME.pack(0, 1)
_MAX_ADDRESS_BYTES = 110
_MAX_LEVELS = 256
"""Maximum depth of a socket below the folder in which it is allowed."""
_MAX_WAITING = 64


@dataclass(frozen=True, slots=True)
class Door:
    """The channel by which the host passes its filter's file to the guard; made before the host is forked."""

    ours: socket.socket
    """The guard's end of the pair over which the host sends the file on which the filter's requests arrive."""
    theirs: socket.socket
    traces: bool
    """Whether the guard may trace processes of any user."""

    @classmethod
    def make(cls) -> Door:
        """Call it before the guard enters namespaces."""
        ours, theirs = socket.socketpair()
        return cls(ours, theirs, syscalls.has_capability(syscalls.CAP_SYS_PTRACE))

    def hand_over(self, requests: int | None) -> None:
        """Called by the host: send the file, and close both ends."""
        if requests is not None:
            socket.send_fds(self.theirs, [b"f"], [requests])
            os.close(requests)
        self.theirs.close()
        self.ours.close()


class _Request(NamedTuple):
    id: int
    thread: int
    descriptor: int
    address: int
    length: int


class _Refused(Exception):
    """The connection is refused; `number` is the error number for the caller."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class SocketConnector:
    """Handles the `connect` requests of one host when it is called; never waits."""

    def __init__(self, door: Door, proc: int, folders: Sequence[Path], user: int | None) -> None:
        """`proc`: open `/proc` with the thread numbers that the kernel reports to the guard; `folders`: the host may
        write to them; `user`: the user id that the host changed to, or `None`."""
        self._door = door
        self._proc = proc
        self._door.theirs.close()
        self._allowed = {_identity(os.stat(folder)) for folder in folders}
        self._user = user
        self._waiting: list[_Request] = []
        self.addresses: set[bytes] = set()
        """Addresses of the listeners that were connected to, see `buffers.waiting_connections`."""
        self.file: int = door.ours.fileno()
        """The file to poll for input."""
        self._requests: int | None = None
        os.fchdir(proc)  # an address is short; see `_connect`

    @property
    def waiting(self) -> bool:
        """Whether a `connect` must be tried again soon."""
        return bool(self._waiting)

    def answer(self, event: int) -> bool:
        """Handle all requests that can be handled now; `event` is the result of `poll` for `file`. `False` if no more
        can arrive."""
        again, self._waiting = self._waiting, []
        for waiting in again:
            self._settle(waiting)
        if self._requests is None:
            return self._open() if event else True
        if event & select.POLLIN:
            request = _received(self._requests)
            if request is not None:
                self._settle(request)
        return not event & ~select.POLLIN

    def _open(self) -> bool:
        _, found, _, _ = socket.recv_fds(self._door.ours, 1, 1)
        self._door.ours.close()
        if not found:  # the host ended before it was confined
            return False
        self._requests = self.file = found[0]
        return True

    def _settle(self, request: _Request) -> None:
        assert self._requests is not None
        try:
            with self._as_the_host():
                done = self._connect(self._requests, request)
            number = 0
        except _Refused as refusal:
            done, number = True, refusal.number
        except OSError as fault:
            done, number = True, fault.errno or errno.EPERM
        if done:
            _reply(self._requests, request, number)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(request)
        else:
            _reply(self._requests, request, errno.EAGAIN)

    @contextlib.contextmanager
    def _as_the_host(self) -> Iterator[None]:
        """Within the context, paths are resolved with the rights of the host's user."""
        if self._user is None:
            yield
        elif self._door.traces:
            with syscalls.finding_files_as(self._user):
                yield
        else:  # only that user may trace the host's processes
            with syscalls.real_user(self._user):
                yield

    def _connect(self, requests: int, request: _Request) -> bool:
        """Whether the request is complete; `False` if the listener's queue is full."""
        thread, proc = request.thread, self._proc
        path = _path(syscalls.read_memory(thread, request.address, min(request.length, _MAX_ADDRESS_BYTES)))
        folder, _, name = path.rpartition(b"/")
        if not path.startswith(b"/"):
            folder = b"%d/cwd/" % thread + folder
        process = _process_of(thread, proc)
        with _opened(folder or b"/", os.O_PATH | os.O_DIRECTORY, proc) as place:
            # what was read and opened by the number of a thread is that thread's only while it waits for us
            fcntl.ioctl(requests, _STILL_VALID, struct.pack("=Q", request.id))
            if not self._is_allowed(place):
                raise _Refused(errno.EPERM)
            with _opened(name, os.O_PATH | os.O_NOFOLLOW, place) as target:
                if not stat.S_ISSOCK(os.fstat(target).st_mode):
                    raise _Refused(errno.ECONNREFUSED)
                with _same_socket(process, request.descriptor) as caller:
                    fcntl.ioctl(requests, _STILL_VALID, struct.pack("=Q", request.id))
                    if not _connected(caller, f"self/fd/{target}"):  # below our working folder, which is `proc`
                        return False
                    self._note(caller)
                    return True

    def _note(self, caller: socket.socket) -> None:
        address = buffers.as_listed(caller.getpeername())
        if address is None:  # what waits there could not be counted
            caller.shutdown(socket.SHUT_RDWR)
            raise _Refused(errno.EPERM)
        self.addresses.add(address)

    def _is_allowed(self, place: int) -> bool:
        """Whether the folder is an allowed one, or below one."""
        with contextlib.ExitStack() as stack:
            for _ in range(_MAX_LEVELS):
                identity = _identity(os.fstat(place))
                if identity in self._allowed:
                    return True
                place = stack.enter_context(_opened(b"..", os.O_PATH | os.O_DIRECTORY, place))
                if _identity(os.fstat(place)) == identity:
                    return False
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path(address: bytes) -> bytes:
    """The path in a `sockaddr_un`."""
    if len(address) < 2 or struct.unpack_from("=H", address)[0] != socket.AF_UNIX:
        raise _Refused(errno.EPERM)
    path = address[2:].partition(b"\0")[0]
    if not path:  # an abstract name
        raise _Refused(errno.EPERM)
    return path


def _process_of(thread: int, proc: int) -> int:
    with open(os.open(f"{thread}/status", os.O_RDONLY, dir_fd=proc), "rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"Tgid:"))


@contextlib.contextmanager
def _opened(path: bytes, flags: int, folder: int) -> Iterator[int]:
    place = os.open(path, flags | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield place
    finally:
        os.close(place)


@contextlib.contextmanager
def _same_socket(process: int, descriptor: int) -> Iterator[socket.socket]:
    """The socket that the process has open as `descriptor`."""
    handle = os.pidfd_open(process)
    try:
        taken = syscalls.take_descriptor(handle, descriptor)
    finally:
        os.close(handle)
    try:
        found = socket.socket(fileno=taken)
    except OSError:
        os.close(taken)
        raise
    with found:
        yield found


def _connected(caller: socket.socket, address: str) -> bool:
    """`False` if the connection would have to wait, and the socket is blocking."""
    before = caller.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.size)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _MIN_WAIT)
    try:
        caller.connect(address)
    except BlockingIOError:
        if not fcntl.fcntl(caller, fcntl.F_GETFL) & os.O_NONBLOCK:
            return False
        raise
    finally:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, before)
    return True


def _received(requests: int) -> _Request | None:
    """The next; `None` where the one that asked has ended."""
    buffer = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(requests, _RECEIVE, buffer, True)
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    number, thread, _, _, _, _, descriptor, address, length, *_ = _NOTICE.unpack(buffer)
    return _Request(number, thread, ctypes.c_int(descriptor & 0xFFFFFFFF).value, address, length & 0xFFFFFFFF)


def _reply(requests: int, request: _Request, number: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # who asked has ended
        fcntl.ioctl(requests, _ANSWER, bytearray(_REPLY.pack(request.id, 0, -number, 0)), True)
