"""Acts that speak to the outside."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from typing import Any


def _gained(*acts: Callable[[], Any]) -> float:
    for act in acts:
        try:
            act()
        except OSError:
            continue
        return 1.0
    return 0.0


def tcp(item: dict[str, Any]) -> float:
    return _gained(lambda: socket.create_connection(("127.0.0.1", item["port"]), timeout=0.5))


def tcp_of_a_child(item: dict[str, Any]) -> float:
    shell = f"echo hello > /dev/tcp/127.0.0.1/{item['port']}"
    return float(subprocess.run(["bash", "-c", shell], capture_output=True, check=False).returncode == 0)


def http(item: dict[str, Any]) -> float:
    return _gained(lambda: urllib.request.urlopen(f"http://127.0.0.1:{item['port']}/", timeout=0.5))


def udp(item: dict[str, Any]) -> float:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", ("127.0.0.1", item["port"]))

    return _gained(send)


def names(item: Any) -> float:
    return _gained(lambda: socket.getaddrinfo("example.com", 80))


def unix_socket(item: dict[str, Any]) -> float:
    def to(address: str) -> Callable[[], None]:
        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)

        return connect

    return _gained(to(item["unix_socket"]), to("\0" + item["abstract_socket"]))


def unix_socket_by_a_link(item: dict[str, Any]) -> float:
    """The link lies where it may connect; what it leads to does not."""
    os.symlink(item["unix_socket"], "out")
    os.symlink(item["open_folder"], "out-there")

    def to(address: str) -> Callable[[], None]:
        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)

        return connect

    try:
        return _gained(*map(to, ("out", os.path.abspath("out"), "out-there/socket")))
    finally:
        os.unlink("out")
        os.unlink("out-there")


def unix_socket_in_a_race(item: dict[str, Any]) -> float:
    """The address, and a link on the way, change while it is looked at."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("own")
        listener.listen(128)
        there, own = (struct.pack("=H108s", 1, name.encode()) for name in (item["unix_socket"], "way/own"))
        address = ctypes.create_string_buffer(own)
        os.mkdir("here")
        os.symlink(os.path.abspath("own"), "here/own")
        os.symlink("here", "way")
        stop = threading.Event()

        def change() -> None:
            while not stop.is_set():
                ctypes.memmove(address, there, len(there))
                ctypes.memmove(address, own, len(own))

        thread = threading.Thread(target=change)
        thread.start()
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as client:
                libc.connect(client.fileno(), address, len(own))
        stop.set()
        thread.join()
    for name in ("own", "here/own", "way"):
        os.unlink(name)
    os.rmdir("here")
    return 0.0  # whether somebody came is seen where they listen


def datagrams_of_a_pair(item: dict[str, Any]) -> float:
    """A socket of a pair can send to any address, if it is one for datagrams."""

    def send() -> None:
        one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.sendto(b"hello", "\0" + item["abstract_socket"])

    return _gained(send)


def raw(item: Any) -> float:
    return _gained(
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    )


def listen(item: Any) -> float:
    return _gained(lambda: socket.create_server(("127.0.0.1", 0)))
