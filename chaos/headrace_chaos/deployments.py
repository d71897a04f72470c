"""How the service is started, and what its operator does when a part that they started has ended.

    Embedded   headrace serve, with a Redis and a Ray of its own: they end and begin with it
    Cluster    valkey-server · a Ray head with one core · a Ray node with two · headrace serve, as four programs

`tend` is the operator, or the system's service manager in their place: it starts again what ended, and nothing else.
Neither kills or stops anything; the kinds of processes that a campaign may strike are in `kinds`.
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
"""A gateway that finds no Redis or no Ray ends with an error, and is started again for so long."""


class Arrangement(Protocol):
    """One way to run the service. `ranks`: of the learner of its jobs."""

    kinds: tuple[str, ...]
    ranks: int
    service: Service

    def roots(self) -> list[int]:
        """The processes that were started here."""
        ...

    def spared(self) -> set[int]:
        """Processes that are never struck."""
        ...

    def tend(self) -> list[str]:
        """Start again what has ended; what that was."""
        ...

    def stop(self) -> int:
        """End everything in good order; the exit status of the service."""
        ...


class Embedded:
    """All parts are the service's own."""

    kinds: tuple[str, ...] = ("rollout", "learner", "reward", "controller", "gateway", "redis", "node", "starting")
    ranks = 1

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._data, self._environment = folder / "embedded", environment
        self.service = started(self._data, environment)

    def roots(self) -> list[int]:
        """See `Arrangement`."""
        return [self.service.pid]

    def spared(self) -> set[int]:
        """See `Arrangement`."""
        return set()

    def tend(self) -> list[str]:
        """See `Arrangement`."""
        if not self.service.ended():
            return []
        self.service = started(self._data, self._environment)
        return ["gateway"]

    def stop(self) -> int:
        """See `Arrangement`."""
        return self.service.stop()


class Cluster:
    """Redis and Ray are the operator's. Two of a job's three processes are on the node that may die."""

    kinds: tuple[str, ...] = ("rank", "node", "gateway", "redis", "controller", "rollout", "reward")
    ranks = 2

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._data = folder / "cluster"
        self._redis = RedisServer(folder / "redis")
        self._redis.start()
        self._ray = RayCluster(1)
        self._node = self._ray.add_node(2, NODE_HOST)
        self._environment = environment | self._ray.environment | {"HEADRACE_REDIS_URL": self._redis.url}
        self.service = started(self._data, self._environment)

    def roots(self) -> list[int]:
        """See `Arrangement`."""
        return [self.service.pid, self._node.pid, self._redis.pid, self._ray.head.pid]

    def spared(self) -> set[int]:
        """See `Arrangement`. The head's own: Ray itself does not survive their loss. What runs there is a job's."""
        return {child.pid for child in psutil.Process(self._ray.head.pid).children()}

    def tend(self) -> list[str]:
        """See `Arrangement`."""
        again = []
        if not self._redis.alive:
            self._redis.start()
            again.append("redis")
        if self._node.poll() is not None:
            self._ray.nodes.remove(self._node)
            self._node = self._ray.add_node(2, NODE_HOST)
            again.append("node")
        if self.service.ended():
            self.service = started(self._data, self._environment)
            again.append("gateway")
        return again

    def stop(self) -> int:
        """See `Arrangement`."""
        try:
            return self.service.stop()
        finally:
            self._ray.stop()
            self._redis.stop()


def started(data: Path, environment: dict[str, str]) -> Service:
    """The gateway on `data`. Raises `AssertionError` with the end of its log once it has failed for too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return Service(data, environment)
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
