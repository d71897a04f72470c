"""`plan`: what a job asks of the cluster. Every expected value is counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_controller.placement import environment
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_core.planning.resource_plan import Plan, plan

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


def split(ranks: int, workers: int, devices: int, *nodes: dict[str, float]) -> Plan:
    settings = Hyperparameters(learner_ranks=ranks, rollout_workers=workers, tensor_parallel_size=devices)
    return plan(settings, nodes)


def amounts(plan: Plan) -> list[tuple[float, float]]:
    """(cores, GPUs) of each bundle."""
    return [(bundle["CPU"], bundle.get("GPU", 0.0)) for bundle in plan.bundles]


def test_an_engine_has_its_gpus_in_one_bundle_with_cores_in_proportion() -> None:
    eight: dict[str, float] = {"CPU": 192, "GPU": 8}
    assert amounts(split(4, 1, 4, eight)) == [(24, 1)] * 4 + [(96, 4)]
    assert amounts(split(1, 1, 2, {"CPU": 8, "GPU": 3})) == [(2, 1), (4, 2)]
    # Two engines of three GPUs have no place on one node; the ranks take the fourth of each.
    assert amounts(split(2, 2, 3, {"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4})) == [(4, 1)] * 2 + [(12, 3)] * 2


def test_an_engine_of_several_processes_shares_the_cores_of_one_node() -> None:
    shared = split(1, 1, 2, {"CPU": 7})
    assert amounts(shared) == [(2, 0), (4, 0)]
    assert (shared.threads(1), shared.gpus(1)) == (4, 0)
    # With three cores each, no node would hold all six of the engine.
    assert cores(split(1, 1, 2, {"CPU": 5}, {"CPU": 4})) == [2, 4]
    by_role = split(1, 2, 2, {"CPU": 3, LEARNER: 1}, {"CPU": 8, ROLLOUT: 1})
    assert cores(by_role) == [3, 4, 4]


def test_no_gpu_is_left_without_cores_for_another_job() -> None:
    """A process that took all cores of a node would leave its other seven GPUs to nobody."""
    large = split(8, 8, 1, *[{"CPU": 192.0, "GPU": 8.0}] * 16)
    assert amounts(large) == [(24, 1)] * 16


def test_nodes_without_gpus_are_left_out_where_others_have_some() -> None:
    mixed = split(8, 120, 1, *[{"CPU": 192.0, "GPU": 8.0}] * 16, *[{"CPU": 64.0}] * 4)
    assert amounts(mixed) == [(24, 1)] * 128


def test_processes_share_gpus_in_equal_parts_that_a_gpu_holds() -> None:
    assert amounts(split(1, 2, 1, {"CPU": 12, "GPU": 2})) == [(3, 0.5)] * 3
    assert [b["GPU"] for b in split(1, 2, 1, {"CPU": 12, "GPU": 1}).bundles] == [0.3333] * 3
    assert amounts(split(2, 3, 1, {"CPU": 16, "GPU": 4})) == [(4, 1)] * 2 + [(2, 0.5)] * 3


@pytest.mark.parametrize(
    ("ranks", "workers", "devices", "nodes", "named"),
    [
        (
            1,
            1,
            4,
            [{"CPU": 32.0, "GPU": 4.0}],
            r"1 engines of 4 GPUs on one node each, beside 1 of the learner: .* 4 GPUs",
        ),
        (
            1,
            1,
            4,
            [{"CPU": 32.0, "GPU": 3.0}, {"CPU": 32.0, "GPU": 2.0}],
            r"the nodes have 3 \+ 2 GPUs: lower tensor_par",
        ),
        (
            1,
            1,
            4,
            [{"CPU": 3.0}, {"CPU": 3.0}],
            "1 rollout workers of 4 processes on one node and a learner: 5 processes",
        ),
        (1, 1, 2, [{"CPU": 2.0, "GPU": 8.0}], "3 processes need a core each, .* have 2 cores"),
    ],
)
def test_an_engine_larger_than_every_node_is_an_error_that_says_so(
    ranks: int, workers: int, devices: int, nodes: list[dict[str, float]], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        split(ranks, workers, devices, *nodes)


CPU_NODE = st.builds(lambda cores: {"CPU": float(cores)}, st.integers(0, 24))
GPU_NODE = st.builds(lambda c, g: {"CPU": float(c), "GPU": float(g)}, st.integers(0, 64), st.integers(1, 8))


def placed(bundles: list[tuple[float, float]], nodes: list[dict[str, float]]) -> bool:
    """Whether the largest first, each on the first node with room, all have a place. (GPUs are counted in 1/10,000, as
    Ray does, and parts of a GPU never lie on two.)"""
    free = [(node.get("CPU", 0.0), [10_000] * int(node.get("GPU", 0.0))) for node in nodes]
    for cpu, gpu in sorted(bundles, key=lambda bundle: (bundle[1], bundle[0]), reverse=True):
        for index, (cpus, gpus) in enumerate(free):
            part = round(10_000 * gpu) if gpu < 1 else 10_000
            holding = [n for n, left in enumerate(gpus) if left >= part][: int(gpu) if gpu >= 1 else 1]
            if cpus >= cpu and (not gpu or len(holding) == max(1, int(gpu))):
                for n in holding if gpu else []:
                    gpus[n] -= part
                free[index] = (cpus - cpu, gpus)
                break
        else:
            return False
    return True


@settings(deadline=None, derandomize=True)
@given(
    nodes=st.lists(st.one_of(CPU_NODE, GPU_NODE), min_size=1, max_size=5),
    ranks=st.integers(1, 5),
    workers=st.integers(1, 5),
    devices=st.sampled_from([1, 1, 2, 3, 4]),
)
def test_every_plan_has_a_place_on_its_nodes_and_only_small_clusters_have_none(
    nodes: list[dict[str, float]], ranks: int, workers: int, devices: int
) -> None:
    with_gpus = [node for node in nodes if node.get("GPU")]
    try:
        made = split(ranks, workers, devices, *nodes)
    except InvalidRequest:
        whole = [(1.0, 1.0 if with_gpus else 0.0)] * ranks + [
            (float(devices), float(devices if with_gpus else 0))
        ] * workers
        assert not placed(whole, with_gpus or nodes), "one core and one device for each process would have a place"
        return
    each = amounts(made)
    assert placed(each, nodes)
    assert all(cpu >= 1 and cpu == int(cpu) for cpu, _ in each)
    assert len(set(each[:ranks])) == len(set(each[ranks:])) == 1
    if not with_gpus:
        assert all(not gpu for _, gpu in each)
        assert each[-1][0] == devices * each[0][0], "every process has as many cores"
        more = [(cpu + (devices if n >= ranks else 1), 0.0) for n, (cpu, _) in enumerate(each)]
        assert not placed(more, nodes), "one core more for each process would have a place"
    else:
        assert all(gpu > 0 for _, gpu in each)
        assert devices == 1 or {gpu for _, gpu in each[ranks:]} == {devices}
        assert ranks == 1 or {gpu for _, gpu in each[:ranks]} == {1.0}


def test_a_process_without_a_gpu_of_its_own_sees_none() -> None:
    """Ray hides none from a process that asked for none."""
    assert environment(2, 0.0)["CUDA_VISIBLE_DEVICES"] == ""
    assert [environment(2, gpus).get("CUDA_VISIBLE_DEVICES") for gpus in (0.5, 1.0, 4.0)] == [None] * 3
