"""`plan`: what a job asks of the cluster. Every expected value is counted by hand."""

from __future__ import annotations

import pytest

from headrace_controller.placement import Plan, plan
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest

LEARNER, ROLLOUT = "headrace_learner", "headrace_rollout"


def planned(workers: int, *nodes: dict[str, float]) -> Plan:
    return plan(Hyperparameters(rollout_workers=workers), nodes)


def cores(plan: Plan) -> list[float]:
    return [bundle["CPU"] for bundle in plan.bundles]


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (1, [2], [1, 1]),
        (1, [7], [3, 3]),
        (3, [16], [4, 4, 4, 4]),
        (1, [4, 4, 4], [4, 4]),  # twelve cores, but no process spans two nodes
        (2, [8, 2], [2, 2, 2]),  # three threads each would leave the third no node
        (1, [0, 3, 3], [3, 3]),  # a head node without cores takes nobody
    ],
)
def test_all_nodes_are_shared_evenly(workers: int, nodes: list[float], expected: list[float]) -> None:
    shared = planned(workers, *({"CPU": n, "memory": 1e9} for n in nodes))
    assert cores(shared) == expected
    assert [shared.threads(b) for b in range(len(expected))] == expected
    assert all(set(bundle) == {"CPU"} for bundle in shared.bundles)


def test_each_role_shares_the_nodes_that_declare_it() -> None:
    shared = planned(2, {"CPU": 0.0}, {"CPU": 4, LEARNER: 1}, {"CPU": 16, ROLLOUT: 1})
    learner, *rollouts = shared.bundles
    assert learner["CPU"] == 4
    assert LEARNER in learner
    assert ROLLOUT not in learner
    assert [r["CPU"] for r in rollouts] == [8, 8]
    assert all(ROLLOUT in r and LEARNER not in r for r in rollouts)
    assert shared.threads(0) == 4
    assert shared.threads(2) == 8


def test_a_role_says_where_and_not_how_many() -> None:
    shared = planned(6, {"CPU": 1, LEARNER: 1}, {"CPU": 6, ROLLOUT: 1})
    assert sum(bundle.get(ROLLOUT, 0.0) for bundle in shared.bundles) < 1


def test_gpus_are_whole_where_there_are_enough_and_shared_where_not() -> None:
    one_each = planned(1, {"CPU": 4, "GPU": 1, LEARNER: 1}, {"CPU": 8, "GPU": 1, ROLLOUT: 1})
    assert [bundle["GPU"] for bundle in one_each.bundles] == [1, 1]
    halves = planned(1, {"CPU": 4, "GPU": 1})
    assert [bundle["GPU"] for bundle in halves.bundles] == [0.5, 0.5]
    assert str(halves) == "4 CPU, 1 GPU"


def ranked(ranks: int, workers: int, *nodes: dict[str, float]) -> Plan:
    return plan(Hyperparameters(learner_ranks=ranks, rollout_workers=workers), nodes)


def test_ranks_of_a_learner_share_like_workers_and_come_first() -> None:
    shared = ranked(2, 1, {"CPU": 7.0})
    assert (cores(shared), shared.ranks) == ([2, 2, 2], 2)
    by_role = ranked(2, 3, {"CPU": 4, LEARNER: 1}, {"CPU": 4, LEARNER: 1}, {"CPU": 9, ROLLOUT: 1})
    assert cores(by_role) == [4, 4, 3, 3, 3]
    assert [LEARNER in bundle for bundle in by_role.bundles] == [True, True, False, False, False]


def test_ranks_of_a_learner_have_a_gpu_each() -> None:
    assert [b["GPU"] for b in ranked(2, 2, {"CPU": 8, "GPU": 3}).bundles] == [1, 1, 0.5, 0.5]
    assert [b["GPU"] for b in ranked(2, 1, {"CPU": 8, "GPU": 8}).bundles] == [1, 1, 1]
    by_role = ranked(2, 1, {"CPU": 4, "GPU": 2, LEARNER: 1}, {"CPU": 4, ROLLOUT: 1})
    assert [b.get("GPU") for b in by_role.bundles] == [1, 1, None]
    clusters: list[list[dict[str, float]]] = [
        [{"CPU": 8, "GPU": 2}],
        [{"CPU": 8, "GPU": 1, LEARNER: 1}, {"CPU": 8, ROLLOUT: 1}],
    ]
    for nodes in clusters:
        with pytest.raises(InvalidRequest, match="2 ranks of a learner need a GPU each"):
            ranked(2, 1, *nodes)


def test_shared_gpus_are_not_overdrawn() -> None:
    assert sum(b["GPU"] for b in planned(2, {"CPU": 4, "GPU": 2}).bundles) <= 2


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([{"CPU": 1.0}], "1 rollout workers and a learner: 2 processes need a core each, .* have 1"),
        ([], "have 0 cores"),
        ([{"CPU": 8.0, LEARNER: 1.0}], "no place for 1 rollout workers"),
        ([{"CPU": 8.0, ROLLOUT: 1.0}], "no place for a learner"),
    ],
)
def test_too_few_cores_are_an_error_that_says_so(nodes: list[dict[str, float]], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        planned(1, *nodes)
