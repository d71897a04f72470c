"""Semaphores for `multiprocessing` where `/dev/shm` is closed: its locks, queues, pools and executors rest on them, and
its shared values on a file there.

    Lock, Queue, Pool, ProcessPoolExecutor ─► _multiprocessing.SemLock ─► sem_open(3): a file in /dev/shm
                                              └ taken by `FileSemaphore` ─► sem_init(3) in a file of the scratch folder

At level `filtered` there is no `/dev/shm` of the host's own, and the machine's holds files of others: Landlock opens a
folder as a whole. The semaphore itself is the C library's, so that waiting costs nothing, and the processes that
`multiprocessing` starts share it by the file's path. Other Python programs that the code starts do not have this.
"""

from __future__ import annotations

import _multiprocessing  # type: ignore[import-not-found]
import contextlib
import ctypes
import errno
import mmap
import os
import threading
import time
from typing import Any, Self

_BYTES = 64
"""At least the size of `sem_t`."""
_RECURSIVE = 0
_NANOSECONDS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class FileSemaphore:
    """A replacement of `_multiprocessing.SemLock`, with the interface that `multiprocessing.synchronize` uses."""

    SEM_VALUE_MAX = 0x7FFFFFFF

    def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> None:
        """Create a semaphore; `unlink` if only forked processes share it. Raises `FileExistsError`."""
        import tempfile  # imported late: it imports many modules

        if not 0 <= value <= maxvalue:
            raise ValueError("invalid value")
        path = os.path.join(tempfile.gettempdir(), f"sem.{name.lstrip('/')}")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, _BYTES)
            self._take(file, kind, maxvalue, None if unlink else path)
        finally:
            os.close(file)
        _checked(_libc.sem_init(self._address, 1, ctypes.c_uint(value)))
        if unlink:
            os.unlink(path)

    @classmethod
    def _rebuild(cls, handle: int, kind: int, maxvalue: int, name: str) -> Self:
        """Open an existing semaphore in a process that was spawned."""
        semaphore = cls.__new__(cls)
        file = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        try:
            semaphore._take(file, kind, maxvalue, name)
        finally:
            os.close(file)
        return semaphore

    def _take(self, file: int, kind: int, maxvalue: int, name: str | None) -> None:
        self.kind, self.maxvalue, self.name = kind, maxvalue, name
        self._memory = mmap.mmap(file, _BYTES)
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))
        self.handle = self._address.value
        self._held, self._owner = 0, 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Whether the semaphore was acquired; `timeout` in seconds, `None` waits without limit."""
        if self.kind == _RECURSIVE and self._is_mine():
            self._held += 1
            return True
        if not self._acquired(block, timeout):
            return False
        self._held += 1
        self._owner = threading.get_ident()
        return True

    def _acquired(self, block: bool, timeout: float | None) -> bool:
        if not block or (timeout is not None and timeout <= 0):
            return _came(lambda: _libc.sem_trywait(self._address), errno.EAGAIN)
        if timeout is None:
            return _came(lambda: _libc.sem_wait(self._address), errno.EAGAIN)
        until = ctypes.byref(_Time(*divmod(time.time_ns() + int(timeout * _NANOSECONDS), _NANOSECONDS)))
        return _came(lambda: _libc.sem_timedwait(self._address, until), errno.ETIMEDOUT)

    def release(self) -> None:
        """Raises `AssertionError` if another thread holds a recursive lock, `ValueError` beyond `maxvalue`."""
        if self.kind == _RECURSIVE:
            if not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self._held > 1:
                self._held -= 1
                return
        elif self._get_value() >= self.maxvalue:
            raise ValueError("semaphore or lock released too many times")
        _checked(_libc.sem_post(self._address))
        self._held -= 1

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _count(self) -> int:
        return self._held

    def _is_mine(self) -> bool:
        return self._held > 0 and self._owner == threading.get_ident()

    def _get_value(self) -> int:
        value = ctypes.c_int()
        _checked(_libc.sem_getvalue(self._address, ctypes.byref(value)))
        return value.value

    def _is_zero(self) -> bool:
        return self._get_value() == 0

    def _after_fork(self) -> None:
        self._held = 0


def provide() -> None:
    """Use `FileSemaphore` in this process if the C library's semaphores cannot be made because `/dev/shm` is closed."""
    module: Any = _multiprocessing
    name = f"/headrace-{os.getpid()}"
    try:
        module.SemLock(1, 0, 1, name, True)
    except OSError:
        module.SemLock, module.sem_unlink = FileSemaphore, _unlink
        from multiprocessing import heap  # likewise

        heap.Arena._dir_candidates = []  # type: ignore[attr-defined]  # of shared values; the temporary folder is next


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _came(wait: Any, none: int) -> bool:
    """Whether `wait` succeeded; `False` if it failed with the error number `none`. A signal does not end the wait."""
    while wait() != 0:
        number = ctypes.get_errno()
        if number == none:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
