"""A plan's bundles on a real Ray that was told of GPUs that the machine has not, and what its processes see of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from headrace_controller.placement import NAMESPACE, Placement, alive_nodes, environment
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.planning.resource_plan import plan

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WAIT_SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def three_gpus() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=6,
        num_gpus=3,
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


class Seen:
    """An actor that says which GPUs its process sees."""

    def devices(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def devices(gpus: float, variables: dict[str, str]) -> str | None:
    actor: Any = ray.remote(Seen).options(num_cpus=0, num_gpus=gpus, runtime_env={"env_vars": variables}).remote()
    seen: str | None = ray.get(actor.devices.remote(), timeout=WAIT_SECONDS)
    ray.kill(actor)
    return seen


def test_a_process_sees_the_gpus_that_it_was_given_and_no_other() -> None:
    assert devices(0.0, environment(1, 0.0)) == ""
    for gpus, count in ((0.5, 1), (1.0, 1), (2.0, 2)):
        seen = devices(gpus, environment(1, gpus))
        assert seen is not None
        assert len(set(seen.split(","))) == count
        assert set(seen.split(",")) <= {"0", "1", "2"}


async def test_a_plan_of_whole_and_of_shared_gpus_is_placed() -> None:
    """With an engine of two GPUs; and with six processes on three GPUs."""
    for settings in (Hyperparameters(tensor_parallel_size=2), Hyperparameters(rollout_workers=5)):
        made = Placement(plan(settings, alive_nodes()))
        try:
            assert await made.ready(WAIT_SECONDS)
        finally:
            made.remove()
