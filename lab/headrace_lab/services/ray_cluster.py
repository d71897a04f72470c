"""A Ray cluster as an operator starts one, of processes on this machine: a head, and nodes that may come and go."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeAlias

from .service import START_SECONDS

HOST = "127.0.0.21"
"""Loopback: Ray replaces 127.0.0.1 by the machine's outward address."""
_STOP_SECONDS = 60
_ATTEMPTS = 5

Node: TypeAlias = "subprocess.Popen[bytes]"
"""`ray start --block`: a raylet and its agents under it. It ends when one of them does."""


class RayCluster:
    """A head with `cores`, which may be more than the machine has, and the nodes that `add_node` starts."""

    def __init__(self, cores: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="hr-", dir="/tmp")  # for sockets, whose paths are limited to 107 bytes
        with socket.create_server((HOST, 0)) as free:
            self._port = free.getsockname()[1]
        self._secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
        self.nodes: list[Node] = []
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        self.head = self._started(HOST, cores, *head)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return self._secret | {"RAY_ADDRESS": f"{HOST}:{self._port}"}

    def add_node(self, cores: int, host: str) -> Node:
        """One more, at a loopback address of its own; it is there on return."""
        node = self._started(host, cores, f"--address={HOST}:{self._port}")
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End all of it, whatever has ended already."""
        for process in (*self.nodes, self.head):
            process.terminate()
        for process in (*self.nodes, self.head):
            process.wait(_STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self, host: str, cores: int, *options: str) -> Node:
        """Tried again: Ray gives a node some seconds to start, too few on a busy machine."""
        shared = [f"--node-ip-address={host}", f"--num-cpus={cores}", f"--object-store-memory={2**27}"]
        for _ in range(_ATTEMPTS):
            log = Path(self._folder, f"{secrets.token_hex(4)}.log")
            with log.open("w") as said:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options, *shared],
                    stdout=said,
                    stderr=said,
                    env=os.environ | self._secret | {"RAY_USAGE_STATS_ENABLED": "0"},
                    start_new_session=True,
                )
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text():
                    return process
                time.sleep(0.2)
            process.terminate()
            process.wait(_STOP_SECONDS)
        raise AssertionError(f"Ray did not start in {_ATTEMPTS} attempts: {log.read_text()[-2000:]}")
