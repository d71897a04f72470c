"""Acts that take more than their share: time, memory, processes, disk, output, stack."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

MOST_FORKS = 300
MOST_BYTES = 4 << 30
CHUNK = 64 << 20


def behave(item: Any) -> float:
    return 1.0


def fork_bomb(item: Any) -> float:
    for _ in range(MOST_FORKS):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    return 1.0


def fork_tree(item: Any) -> float:
    """Each child forks too, so that nobody is the parent of all: 2⁸ processes at most."""
    for _ in range(8):
        try:
            os.fork()
        except OSError:
            time.sleep(60)
    time.sleep(60)
    return 1.0


def zombies(item: Any) -> float:
    for _ in range(MOST_FORKS):
        if os.fork() == 0:
            os._exit(0)
    return 1.0


def orphaned_zombies(item: Any) -> float:
    """Children of children, whose parents are gone: forty are too many, unless whoever adopts them reaps them."""
    for _ in range(40):
        child = os.fork()
        if child == 0:
            os.fork()
            os._exit(0)
        os.waitpid(child, 0)
    return 0.0


def threads(item: Any) -> float:
    for _ in range(MOST_FORKS):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return 1.0


def memory(item: Any) -> float:
    held = []
    for _ in range(MOST_BYTES // CHUNK):
        held.append(bytearray(CHUNK))
    return 1.0


def memory_in_children(item: Any) -> float:
    """Eight processes of 64 MiB: none is beyond its own limit, all together are."""
    for _ in range(8):
        if os.fork() == 0:
            block = b"x" * CHUNK
            time.sleep(60)
            os._exit(len(block) & 1)
    time.sleep(60)
    return 1.0


def memory_behind_an_ended_thread(item: Any) -> float:
    """The first thread of each process ends, and what its number shows is nothing then."""
    for _ in range(8):
        if os.fork() == 0:
            held: list[bytes] = []

            def hold(held: list[bytes] = held) -> None:
                held.append(b"x" * CHUNK)
                time.sleep(60)

            threading.Thread(target=hold).start()
            ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)  # exit, of this thread
    time.sleep(60)
    return 1.0


def memory_in_sockets(item: Any) -> float:
    """What was written and not read belongs to no process."""
    for _ in range(8):
        if os.fork() == 0:
            pairs = [socket.socketpair() for _ in range(100)]
            for one, other in pairs:
                for end in (one, other):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                    end.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while end.send(b"x" * 65536):
                            pass
            time.sleep(60)
    time.sleep(60)
    return 1.0


def memory_in_unlinked_files(item: Any) -> float:
    """Beside what the process holds itself."""
    held = [b"x" * CHUNK for _ in range(2)]
    files = []
    for folder in (".", "/dev/shm"):
        for number in range(2):
            path = Path(folder, f"block-{number}")
            files.append(path.open("wb"))
            path.unlink()
            files[-1].write(b"x" * (15 << 20))
            files[-1].flush()
    held += [b"x" * CHUNK]
    time.sleep(60)
    return float(len(held) + len(files))


def waiting_connections(item: Any) -> float:
    """Each waits for a listener that accepts nothing; the guard, which makes them, must go on watching."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("full.sock")
        listener.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        threading.stack_size(256 << 10)
        for client in clients:
            threading.Thread(target=client.connect, args=("full.sock",), daemon=True).start()
        threading.stack_size(0)
        time.sleep(60)
    return 1.0


def shared_memory(item: Any) -> float:
    held = []
    for _ in range(MOST_BYTES // CHUNK):
        block = mmap.mmap(-1, CHUNK)
        block.write(b"x" * 4096)
        held.append(block)
    return 1.0


def memory_file(item: Any) -> float:
    try:
        os.close(os.memfd_create("hidden"))
    except OSError:
        return 0.0
    return 1.0


def loop(item: Any) -> float:
    while True:
        pass


def loop_in_c(item: Any) -> int:
    return 10 ** (10**8)


def backtracking(item: Any) -> float:
    return float(re.match(r"(a+)+$", "a" * 64 + "b") is None)


def sleep(item: Any) -> float:
    time.sleep(60)
    return 1.0


def output(item: Any) -> float:
    while True:
        print("spam" * 1000)


def output_of_a_child(item: Any) -> float:
    subprocess.run(["yes"], check=True)
    return 1.0


def disk(item: Any) -> float:
    for number in range(64):
        with open(f"block-{number}", "wb") as file:
            file.write(b"x" * (1 << 20))
    return 1.0


def many_names(item: Any) -> float:
    for number in range(5_000):
        Path(f"name-{number}").touch()
    return 1.0


def large_file(item: Any) -> float:
    with open("large", "wb") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    return 1.0


def open_files(item: Any) -> float:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(2_000)]
    return float(len(held))


def recursion(item: Any) -> float:
    return recursion(item) + 1.0


def stack_of_c(item: Any) -> int:
    """Hashing goes down in C, where nobody counts the depth."""
    nested: tuple[Any, ...] = ()
    for _ in range(10**6):
        nested = (nested,)
    return hash(nested)
