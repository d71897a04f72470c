"""Acts that speak to the outside."""

from __future__ import annotations

import socket
import subprocess
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
    )


def listen(item: Any) -> float:
    return _gained(lambda: socket.create_server(("127.0.0.1", 0)))
