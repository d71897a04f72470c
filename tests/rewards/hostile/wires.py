"""Acts against the way the answers take, and against what the host is made of."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import stat
import sys
import time
from typing import Any

FORGED = b'{"type":"result","index":0,"outcomes":[{"type":"score","value":99.0,"components":{}}]}'


def _sockets() -> list[int]:
    found = []
    for fd in range(256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


def close_everything(item: Any) -> float:
    os.closerange(0, 256)
    return 1.0


def noise(item: Any) -> float:
    for fd in _sockets():
        os.write(fd, b"\x00noise" * 1000)
    return 1.0


def endless_frame(item: Any) -> float:
    for fd in _sockets():
        os.write(fd, b"\xff\xff\xff\xff" + b"x" * 1000)
    return 1.0


def forged_answers(item: Any) -> float:
    """For itself twice: the second is one that nobody asked for."""
    for fd in _sockets():
        os.write(fd, (len(FORGED).to_bytes(4, "big") + FORGED) * 2)
    return 1.0


def half_a_frame(item: Any) -> float:
    for fd in _sockets():
        os.write(fd, b"\x00\x00\x01\x00")
        os.close(fd)
    return 1.0


def shut_the_socket(item: Any) -> float:
    for fd in _sockets():
        socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
    return 1.0


def close_the_socket_and_live(item: Any) -> float:
    for fd in _sockets():
        os.close(fd)
    time.sleep(60)
    return 1.0


def rewrite_the_host(item: Any) -> float:
    from headrace_rewards.sandbox import frames

    frames.encode = lambda message: b"{}"
    return 1.0


def break_the_host(item: Any) -> float:
    from headrace_rewards.sandbox import host

    for thing in gc.get_objects():
        if isinstance(thing, host.Host):
            thing.__dict__.clear()
    return 1.0


def raise_limits(item: Any) -> float:
    gained = 0
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            gained += 1
        except (OSError, ValueError):
            continue
    return float(gained)


def leave_a_loop(item: Any) -> float:
    async def forever() -> None:
        await asyncio.sleep(600)

    loop = asyncio.new_event_loop()
    task = loop.create_task(forever())
    loop.run_until_complete(asyncio.sleep(0))
    asyncio.set_event_loop(loop)
    return float(task.done())


def replace_modules(item: Any) -> float:
    for name in ("json", "traceback", "msgspec", "headrace_rewards.user_code.return_values"):
        sys.modules[name] = None  # type: ignore[assignment]
    return 0.0
