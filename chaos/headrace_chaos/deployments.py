"""Two arrangements of the service: how its parts are started, and restarted by the operator when they end.

    Embedded   headrace serve, which starts its own Redis and Ray and ends them with itself
    Cluster    valkey-server · a Ray head with one core · a Ray node with two · headrace serve: four separate programs

`restart_ended` stands for the operator, or a service manager such as systemd: it restarts what has ended and does
nothing else. The kinds of processes that a campaign may strike are in `kinds`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Protocol

import psutil

from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.services.ray_cluster import RayCluster
from headrace_lab.services.service import Service

NODE_HOST = "127.0.0.22"
START_SECONDS = 300.0
"""A gateway that finds no Redis or no Ray exits with an error; it is started again for at most this time."""


class Arrangement(Protocol):
    """One way to run the service. `ranks`: number of learner ranks of its jobs."""

    kinds: tuple[str, ...]
    ranks: int
    service: Service

    def roots(self) -> list[int]:
        """Process ids of the programs that were started here."""
        ...

    def exempt(self) -> set[int]:
        """Ids of processes that are never struck."""
        ...

    def restart_ended(self) -> list[str]:
        """Restart the parts that have ended; returns their names."""
        ...

    def stop(self) -> int:
        """End everything gracefully; returns the exit status of the service."""
        ...


class Embedded:
    """One program: the service starts its own Redis and Ray."""

    kinds: tuple[str, ...] = ("rollout", "learner", "reward", "controller", "gateway", "redis", "node", "starting")
    ranks = 1

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._data, self._environment = folder / "embedded", environment
        self.service = start_service(self._data, environment)

    def roots(self) -> list[int]:
        """See `Arrangement`."""
        return [self.service.pid]

    def exempt(self) -> set[int]:
        """See `Arrangement`."""
        return set()

    def restart_ended(self) -> list[str]:
        """See `Arrangement`."""
        if not self.service.ended():
            return []
        self.service = start_service(self._data, self._environment)
        return ["gateway"]

    def stop(self) -> int:
        """See `Arrangement`."""
        return self.service.stop()


class Cluster:
    """Redis and Ray are started by the operator. Two of a job's three processes run on the node that may be killed."""

    kinds: tuple[str, ...] = ("rank", "node", "gateway", "redis", "controller", "rollout", "reward")
    ranks = 2

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._data = folder / "cluster"
        self._redis = RedisServer(folder / "redis")
        self._redis.start()
        self._ray = RayCluster(1)
        self._node = self._ray.add_node(2, NODE_HOST)
        self._environment = environment | self._ray.environment | {"HEADRACE_REDIS_URL": self._redis.url}
        self.service = start_service(self._data, self._environment)

    def roots(self) -> list[int]:
        """See `Arrangement`."""
        return [self.service.pid, self._node.pid, self._redis.pid, self._ray.head.pid]

    def exempt(self) -> set[int]:
        """See `Arrangement`. The Ray head's own processes, whose loss Ray does not survive; workers are not exempt."""
        return {child.pid for child in psutil.Process(self._ray.head.pid).children()}

    def restart_ended(self) -> list[str]:
        """See `Arrangement`."""
        restarted = []
        if not self._redis.alive:
            self._redis.start()
            restarted.append("redis")
        if self._node.poll() is not None:
            self._ray.nodes.remove(self._node)
            self._node = self._ray.add_node(2, NODE_HOST)
            restarted.append("node")
        if self.service.ended():
            self.service = start_service(self._data, self._environment)
            restarted.append("gateway")
        return restarted

    def stop(self) -> int:
        """See `Arrangement`."""
        try:
            return self.service.stop()
        finally:
            self._ray.stop()
            self._redis.stop()


def start_service(data: Path, environment: dict[str, str]) -> Service:
    """Start the gateway on the data folder, again and again until it is ready.

    Raises `AssertionError` with the end of its log, or `TimeoutExpired`, once `START_SECONDS` have passed.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return Service(data, environment)
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
