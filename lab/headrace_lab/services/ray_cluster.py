"""A Ray cluster as an operator would start it, with all nodes on this machine: a head, and nodes that come and go."""

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
"""A loopback address other than 127.0.0.1, which Ray would replace by the machine's external address."""
_STOP_SECONDS = 60
_ATTEMPTS = 5

Node: TypeAlias = "subprocess.Popen[bytes]"
"""The process of `ray start --block`, with a raylet and its agents as children. It ends when one of them ends."""


class RayCluster:
    """A head with `cores`, which may be more than the machine has, and nodes that `add_node` starts."""

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
        """Environment variables with which a process connects to the cluster."""
        return self._secret | {"RAY_ADDRESS": f"{HOST}:{self._port}"}

    def add_node(self, cores: int, host: str) -> Node:
        """Start a node at the loopback address `host`; returns when it has joined."""
        node = self._started(host, cores, f"--address={HOST}:{self._port}")
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End all processes of the cluster; some may have ended already."""
        for process in (*self.nodes, self.head):
            process.terminate()
        for process in (*self.nodes, self.head):
            process.wait(_STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self, host: str, cores: int, *options: str) -> Node:
        """Start a node. Retries, because Ray gives a node a few seconds to start, which is too little on a busy
        machine."""
        shared = [f"--node-ip-address={host}", f"--num-cpus={cores}", f"--object-store-memory={2**27}"]
        for _ in range(_ATTEMPTS):
            log = Path(self._folder, f"{secrets.token_hex(4)}.log")
            with log.open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options, *shared],
                    stdout=output,
                    stderr=output,
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
