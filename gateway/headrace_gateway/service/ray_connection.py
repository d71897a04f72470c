"""This process's connection to Ray: to an external cluster, or to a local one that only this machine can reach.

A local cluster consists of two processes, a GCS and a raylet. Without either no worker can start, and if Ray itself
notices that the GCS is gone, it ends this process a minute later. So this connection supervises them: `lost` reports
that one has died, or that the cluster has dropped the node through which this process is connected, and `restart`
connects again. The actors of a lost local Ray have ended with it; jobs get new ones (`RayControllerManager.reconcile`).
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import ray
from ray._private import auto_init_hook, ray_constants, worker

from headrace_controller.placement import NAMESPACE
from headrace_core.errors import Unavailable
from headrace_core.logs import get_logger

from . import ray_token
from .socket_folders import LockedFolder

_LOOPBACK = "127.0.0.1"
_SESSION = "ray"
"""Ray makes its temporary folder writable for every user of the machine, so it gets one inside a folder that only this
user may enter."""
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Ray's own shared memory: Headrace sends only small messages through Ray."""
_START_ATTEMPTS = 3
_NODE_LOOK_SECONDS = 5.0
"""Interval of the checks whether the cluster considers this node alive, and time limit of one check."""


class RayConnection:
    """A connection to the cluster at `address`; None: to a local one, of which nothing is left afterwards."""

    name = "ray"

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._folder: LockedFolder | None = None
        self._looked = 0.0
        self._thread = ThreadPoolExecutor(1, "ray")
        """Ray's processes end with the thread that started them."""

    def __enter__(self) -> RayConnection:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        auto_init_hook.enable_auto_connect = False  # a call without a connection must fail, not start a cluster
        try:
            self._connect()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._thread.submit(self._let_go).result()  # after a restart that may be in progress
        self._thread.shutdown()

    async def lost(self) -> str | None:
        if (ended := _ended()) is not None:
            return f"lost its {ended}"
        if time.monotonic() < self._looked + _NODE_LOOK_SECONDS:
            return None
        try:
            async with asyncio.timeout(_NODE_LOOK_SECONDS):
                alive = await asyncio.to_thread(_node_is_alive)
        except (ray.exceptions.RayError, TimeoutError):  # if a cluster has lost its head, Ray itself ends this process
            alive = True
        self._looked = time.monotonic()
        return None if alive else "gave up this machine's node"

    async def restart(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._reconnect)

    def notice(self) -> None:
        """See `ServicePart`: a start has nothing to report."""

    def _reconnect(self) -> None:
        self._let_go()
        self._connect()

    def _connect(self) -> None:
        """Connect to the cluster, or start a local one. Raises `Unavailable`."""
        try:
            if self._address is None:
                self._start_local()
            else:
                ray.init(address=self._address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise Unavailable(f"Ray at {self._address or 'this machine'} does not answer: {error}") from error

    def _let_go(self) -> None:
        ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _start_local(self) -> None:
        """Start a local Ray. Raises `Unavailable` after the last attempt.

        Ray's node process gives its agents 15 s to start and dies if they need longer, as they may on a busy machine
        whose files are not cached yet; the next attempt finds them cached.
        """
        # On Linux, Ray replaces a loopback address by the machine's external one, and listens on all interfaces. This
        # is the switch that prevents it on other systems (https://github.com/ray-project/ray/issues/18730).
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray_token.keep_private()
        self._folder = LockedFolder("ray")
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=len(os.sched_getaffinity(0)),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    namespace=NAMESPACE,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    _temp_dir=str(self._folder.path / _SESSION),
                    _node_ip_address=_LOOPBACK,
                )
                return
            except Exception as error:  # Ray raises the bare class here
                ray.shutdown()
                if attempt == _START_ATTEMPTS:
                    raise Unavailable(f"Ray did not start in {attempt} attempts: {error}") from error
                log = get_logger(__name__)
                log.warning("Ray did not start and is started again", attempt=attempt, error=str(error))


def _ended() -> str | None:
    """The name of a process of the local Ray that has ended, if any."""
    node = worker._global_node
    dead = [] if node is None else node.dead_processes()
    return dead[0][0] if dead else None


def _node_is_alive() -> bool:
    """Whether the cluster considers the node alive through which this process is connected."""
    ours = ray.get_runtime_context().get_node_id()
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == ours)
