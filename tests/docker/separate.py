"""The containers of docker/compose.yaml as processes of this machine: the same entry point, the same Redis
configuration, the same health checks; each Ray node on a loopback address and in a temporary folder of its own.

Every process of a part carries the part's name in its environment (`MARK`), so that "nothing is left of it" can be
asked of the system, for Ray starts many processes that are nobody's children.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from headrace_gateway.service.redis_program import executable
from headrace_lab.paths import ROOT

DOCKER = ROOT / "docker"
MARK = "TEST_PART_OF_HEADRACE"
START_SECONDS = 180.0
"""Ray alone needs 5 s on an idle machine, and a multiple of it on a busy one."""
STOP_SECONDS = 60.0
HOSTS = {"head": "127.0.0.11", "gateway": "127.0.0.12", "learner": "127.0.0.13", "rollout": "127.0.0.14"}


class Separate:
    """The parts by name, started one by one; as a context manager it leaves no process and no folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.weights = folder / "data", folder / "weights"
        self.password = secrets.token_hex(16)
        self.redis_port = free_port("127.0.0.1")
        self._ray_address = f"{HOSTS['head']}:{free_port(HOSTS['head'])}"
        self._health_ports = {name: free_port("127.0.0.1") for name in HOSTS}
        self._secret = secrets.token_hex(24)
        self._run = secrets.token_hex(8)
        # Ray puts sockets there, whose paths are limited to 107 bytes.
        self._temporary = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Separate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def start_redis(self) -> None:
        """As the compose file does: redis.conf, and the password on the command line."""
        place = ["--bind", "127.0.0.1", "--port", str(self.redis_port), "--dir", str(self.folder)]
        self._start(
            "redis", [str(executable()), str(DOCKER / "redis.conf"), "--requirepass", self.password, *place], {}
        )

    def start_node(self, role: str) -> None:
        """One of `HOSTS`, by the images' entry point."""
        port = self._health_ports[role]
        options = [f"--node-ip-address={HOSTS[role]}", f"--temp-dir={self._temporary / role}"]
        options.append(f"--dashboard-agent-listen-port={port}")
        if role == "head":
            options.append(f"--ray-client-server-port={free_port('127.0.0.1')}")
        environment = {
            "RAY_ADDRESS": self._ray_address,
            "RAY_PORT": self._ray_address.rpartition(":")[2],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._secret,
            "NODE_CPUS": "1",
            "HEADRACE_DATA_DIR": str(self.data),
            "HEADRACE_WEIGHTS_DIR": str(self.weights),
        }
        if role == "gateway":
            url = f"redis://:{self.password}@127.0.0.1:{self.redis_port}/0"
            environment |= {"HEADRACE_REDIS_URL": url, "HEADRACE_HOST": "127.0.0.1", "HEADRACE_PORT": "0"}
        self._start(role, [str(DOCKER / "start.sh"), role, *options], environment)

    def await_node(self, role: str) -> None:
        """Returns once the image's health check passes."""
        self._until(role, lambda: healthy(f"http://127.0.0.1:{self._health_ports[role]}/api/healthz"))

    def await_gateway(self) -> str:
        """Its address, once it has said that it runs and its health check passes."""
        self._until("gateway", lambda: "Headrace runs at" in self.output("gateway"))
        address = self.output("gateway").partition("Headrace runs at ")[2].split()[0]
        self._until("gateway", lambda: healthy(f"{address}/healthz"))
        return address

    def ran(self, pid: int) -> list[str]:
        """The roles on whose node a Ray worker process of that number wrote its log."""
        return [role for role in HOSTS if any((self._temporary / role).glob(f"session_*/logs/worker-*-{pid}.*"))]

    def stop(self, name: str) -> None:
        """As a container ends: SIGTERM to its first process, and when that is gone, whatever it still holds."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            deadline = time.monotonic() + STOP_SECONDS
            while (left := self.left(name)) and time.monotonic() < deadline:
                for other in left:
                    with suppress(psutil.NoSuchProcess):
                        other.kill()
                time.sleep(0.05)
            process.wait(STOP_SECONDS)

    def left(self, name: str) -> list[psutil.Process]:
        """Processes of a part that run now."""
        return [process for process in psutil.process_iter() if _mark(process) == f"{self._run}-{name}"]

    def output(self, name: str) -> str:
        """What a part has written, standard output and error together."""
        return (self.folder / f"{name}.log").read_text()

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        marked = {**os.environ, **environment, "PATH": path, "OMP_NUM_THREADS": "1", MARK: f"{self._run}-{name}"}
        with (self.folder / f"{name}.log").open("w") as log:
            self._processes[name] = subprocess.Popen(
                command, env=marked, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )

    def _until(self, name: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not reached():
            if self._processes[name].poll() is not None:
                raise AssertionError(f"{name} ended while it started:\n{self.output(name)[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} was not up within {START_SECONDS:.0f} s:\n{self.output(name)[-3000:]}")
            time.sleep(0.5)


def healthy(address: str) -> bool:
    """What an image's health check says of the address."""
    check = [sys.executable, str(DOCKER / "healthy.py"), address]
    return subprocess.run(check, check=False, stdout=subprocess.DEVNULL, timeout=30).returncode == 0


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None
