"""Acts that keep memory where no process shows it: in buffers, in objects that nobody maps, with the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import time
from typing import Any

HELD = 220 << 20
"""Held openly, beside what is hidden."""
PIECE = 16 << 20
MOST_PIECES = 30
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.splice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]


def fill(end: int) -> None:
    os.set_blocking(end, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(end, b"x" * 65536):
            pass


def pipes(item: Any) -> float:
    held = b"x" * HELD
    for _ in range(5):
        if os.fork() == 0:
            for _ in range(100):
                fill(os.pipe()[1])
            time.sleep(60)
    time.sleep(60)
    return float(len(held))


def named_pipes(item: Any) -> float:
    held = b"x" * HELD
    for process in range(5):
        if os.fork() == 0:
            for number in range(100):
                name = f"{process}-{number}"
                os.mkfifo(name)
                fill(os.open(name, os.O_RDWR))
                os.unlink(name)
            time.sleep(60)
    time.sleep(60)
    return float(len(held))


def larger_pipes(item: Any) -> float:
    _, end = os.pipe()
    try:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        return 0.0
    return 1.0


def pages_in_pipes(item: Any) -> float:
    """A pipe that has a page of a file, or of a process, keeps the whole of a large one after both are gone."""
    ours, end = os.pipe()
    block = ctypes.create_string_buffer(1)
    with open("pages", "wb+", buffering=0) as file:
        file.write(b"x" * 65536)
        moves = {
            "splice": lambda: LIBC.splice(file.fileno(), ctypes.byref(ctypes.c_long(0)), end, None, 4096, 0),
            "vmsplice": lambda: LIBC.vmsplice(end, (ctypes.c_size_t * 2)(ctypes.addressof(block), 1), 1, 0),
            "tee": lambda: LIBC.tee(ours, end, 1, 2),
            "sendfile": lambda: LIBC.sendfile(end, file.fileno(), ctypes.byref(ctypes.c_long(0)), 4096),
        }
        return float(sum(move() != -1 or ctypes.get_errno() != errno.ENOSYS for move in moves.values()))


def shared_memory_that_nobody_maps(item: Any) -> float:
    """One page of each stays mapped, and keeps the others."""
    held = b"x" * (HELD - 4 * PIECE)
    pieces = []
    for _ in range(MOST_PIECES):
        pieces.append(mmap.mmap(-1, PIECE))
        for _ in range(PIECE >> 20):
            pieces[-1].write(b"x" * (1 << 20))
        start = ctypes.c_char.from_buffer(pieces[-1])
        LIBC.munmap(ctypes.c_void_p(ctypes.addressof(start) + mmap.PAGESIZE), ctypes.c_size_t(PIECE - mmap.PAGESIZE))
    time.sleep(60)
    return float(len(held) + len(pieces))


def large_shared_memory(item: Any) -> float:
    try:
        mmap.mmap(-1, PIECE + mmap.PAGESIZE)
    except OSError as refused:
        return float(refused.errno != errno.ENOMEM)
    return 1.0


def connections_that_nobody_accepted(item: Any) -> float:
    """Who connected, wrote and left is known to its listener alone."""
    held = b"x" * HELD
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("queue")
    listener.listen(4096)
    for _ in range(2_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("queue")
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while client.send(b"x" * 65536):
                    pass
    time.sleep(60)
    return float(len(held))


def connections_with_an_address_of_two_lines(item: Any) -> float:
    """The kernel's list of sockets has a line for each."""
    for address in ("\n", "a\nb", " "):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(address)
            listener.listen()
            try:
                client.connect(address)
                client.send(b"x")
            except OSError:
                continue
            return 1.0
    return 0.0


def notices_of_files(item: Any) -> float:
    """Up to 16,384 wait in each of 128 queues."""
    return float(LIBC.inotify_init1(0) != -1 or ctypes.get_errno() != errno.EPERM)


def requests_of_the_kernel(item: Any) -> float:
    """Their number is the machine's: who takes all leaves none to a database beside."""
    number = 206 if os.uname().machine == "x86_64" else 0
    return float(LIBC.syscall(number, 1024, ctypes.byref(ctypes.c_void_p())) != -1)
