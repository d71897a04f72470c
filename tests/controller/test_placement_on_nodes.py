"""A plan's bundles on a real Ray of several nodes, each a process here, that were told of GPUs the machine has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from headrace_controller.placement import NAMESPACE, Placement, alive_nodes
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.planning.resource_plan import plan

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WAIT_SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """A head without cores, two nodes of 4 GPUs, one of 2, and one without."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for cores, gpus in ((8, 4), (8, 4), (6, 2), (16, 0)):
        cluster.add_node(num_cpus=cores, num_gpus=gpus, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize(
    "settings",
    [
        Hyperparameters(learner_ranks=4, rollout_workers=2, tensor_parallel_size=2),
        Hyperparameters(learner_ranks=2, rollout_workers=2, tensor_parallel_size=4),
        Hyperparameters(learner_ranks=6, rollout_workers=7),
    ],
    ids=["engines of two", "engines that fill nodes", "workers that share"],
)
async def test_a_plan_is_placed_on_several_nodes_and_only_on_those_with_gpus(settings: Hyperparameters) -> None:
    made = plan(settings, alive_nodes())
    assert all(made.gpus(bundle) > 0 for bundle in range(len(made.bundles)))
    placed = Placement(made)
    try:
        assert await placed.ready(WAIT_SECONDS)
        table: dict[str, Any] = placement_group_table(placed._group)
        with_gpus = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
        assert len(with_gpus) == 3
        assert set(table["bundles_to_node_id"].values()) <= with_gpus
    finally:
        placed.remove()
