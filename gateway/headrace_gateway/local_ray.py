"""Ray for this process: a cluster of the user's, or a local one that only this machine can reach."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import structlog
from ray._private import ray_constants

from headrace_core.errors import Unavailable

from .placement import NAMESPACE

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Ray's own shared memory: Headrace sends only small messages through Ray."""
_START_ATTEMPTS = 3


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`; None starts a local one, of which nothing is left afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address is None:
            with _local():
                yield
        else:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
            yield
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise Unavailable(f"Ray at {address or 'this machine'} does not answer: {error}") from error
    finally:
        ray.shutdown()


@contextmanager
def _local() -> Iterator[None]:
    # On Linux, Ray replaces a loopback address by the machine's outward one, and listens on all interfaces. This is the
    # switch by which it does not on other systems (https://github.com/ray-project/ray/issues/18730).
    ray_constants.ENABLE_RAY_CLUSTER = False
    # Ray puts sockets there, whose paths are limited to 107 bytes.
    temporary = tempfile.mkdtemp(prefix="headrace-ray-", dir="/tmp")
    try:
        _start_local(temporary)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _start_local(temporary: str) -> None:
    """Raises `Unavailable` after the last attempt.

    Ray's node process gives its agents 15 s to start and dies if they need longer, as they may on a busy machine whose
    files are not cached yet; the next attempt finds them cached.
    """
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
                _temp_dir=temporary,
                _node_ip_address=_LOOPBACK,
            )
            return
        except Exception as error:  # Ray raises the bare class here
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise Unavailable(f"Ray did not start in {attempt} attempts: {error}") from error
            structlog.get_logger().warning("Ray did not start and is started again", attempt=attempt, error=str(error))
