"""A short campaign over the real ledger, learner order, rollout worker and controller; and that it would find a bug."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from headrace_core.redis_access.scripts import script_source
from headrace_simulation import simulate
from headrace_simulation.fault_plan import JobPlan, Network, Plan, plan
from headrace_simulation.planted_bugs import PLANTS, planted
from headrace_simulation.queue_fake_ray import QUEUE_PLANTS
from headrace_simulation.schedule import Schedule

pytestmark = pytest.mark.timeout(1200)
"""Seconds: on a machine that has other things to do, a schedule takes many times as long."""
SCHEDULES = 100


@pytest.mark.parametrize("schedules", [20, pytest.param(SCHEDULES, marks=pytest.mark.slow)])
def test_a_short_campaign_breaks_no_invariant(schedules: int) -> None:
    total = simulate.tally(0, schedules)
    assert total.broken == [], f"again: make simulate N=1 SEED={total.broken[0][0]}"
    assert total.schedules == schedules
    assert total.ended["succeeded"] > schedules / 2
    assert set(total.ended) == {"succeeded", "cancelled"}
    assert len(total.faults) >= 10  # kinds
    assert total.events > 50 * schedules


@pytest.mark.slow
def test_a_seed_gives_the_same_steps_alone_and_among_others() -> None:
    plans = [plan(seed) for seed in range(40, 52)]
    alone = {s.plan.seed: s.world.steps for s, _ in simulate.run(plans, at_once=1)}
    among = {s.plan.seed: s.world.steps for s, _ in simulate.run(plans, at_once=12)}
    assert alone == among
    assert all(len(steps) > 20 for steps in alone.values())


@cache
def first_found(plant: str) -> tuple[int, str]:
    """(seed, what was violated)."""
    for first in range(0, simulate.PLANT_WITHIN, simulate.CHUNK):
        if broken := simulate.tally(first, simulate.CHUNK, plant).broken:
            return broken[0]
    raise AssertionError(f"{plant} was not found in {simulate.PLANT_WITHIN} schedules")


@pytest.mark.parametrize(
    "plant", [plant if plant == "fencing_off" else pytest.param(plant, marks=pytest.mark.slow) for plant in PLANTS]
)
def test_a_planted_bug_is_found(plant: str) -> None:
    seed, violation = first_found(plant)
    assert seed < simulate.PLANT_WITHIN
    assert violation.startswith("Violation: ")


@pytest.mark.slow
def test_a_short_campaign_of_the_queue_breaks_no_invariant() -> None:
    total = simulate.tally(0, SCHEDULES, world="queue")
    assert total.broken == [], f"again: make simulate N=1 SEED={total.broken[0][0]} WORLD=queue"
    assert total.schedules == SCHEDULES
    assert set(total.ended) == {"succeeded", "cancelled"}
    assert total.ended["succeeded"] > 3 * SCHEDULES  # each has several jobs
    assert len(total.faults) == 10  # kinds


@pytest.mark.parametrize("plant", QUEUE_PLANTS)
@pytest.mark.slow
def test_a_bug_planted_in_the_queue_is_found(plant: str) -> None:
    broken = simulate.tally(0, SCHEDULES, plant, "queue").broken
    assert broken
    assert broken[0][1].startswith("Violation: ")


@pytest.mark.slow
def test_a_failing_schedule_is_shown_with_the_faults_it_needs() -> None:
    seed, _ = first_found("lease_same_token")
    small = simulate.shrunk(plan(seed), "lease_same_token")
    assert len(small.faults) <= len(plan(seed).faults)
    ((schedule, again),) = simulate.run([small], "lease_same_token")
    assert again is not None
    shown = simulate.trace(schedule, again)
    assert "enlist() → [1, 0]" in shown
    assert shown.splitlines()[-1] == f"→ {again}"


def test_a_plant_that_lost_its_place_in_a_script_says_so() -> None:
    assert planted("lease_same_token", "admit", script_source("admit")) != script_source("admit")
    with pytest.raises(ValueError, match="lost its place"):
        planted("lease_same_token", "admit", "return 1")


def test_plans_differ_and_stay_the_same() -> None:
    assert plan(7) == plan(7)
    kinds = Counter(fault.kind for seed in range(300) for fault in plan(seed).faults)
    assert len(kinds) == 15
    assert len({plan(seed).job for seed in range(300)}) > 200


def test_groups_and_steps_that_outlast_every_limit_are_left_in_peace() -> None:
    """A group takes 200 s, a job may stand still for 60: as 32,000 tokens take 800 s, and a job may for 600."""
    job = JobPlan(
        batch_size=2,
        group_size=2,
        max_staleness=1,
        steps=3,
        late="mask",
        checkpoint_interval=1,
        workers=2,
        max_running=4,
        lease_seconds=6.0,
        token_seconds=5.0,
        shortest=40,
        longest=45,
        train_seconds=0.3,
        filter_groups=False,
        finished_within=1000.0,
    )
    ((schedule, violation),) = simulate.run([Plan(1, job, Network(0.0, 0.0, 0.0, 0.0), ())])
    assert isinstance(schedule, Schedule)
    assert (violation, schedule.world.observer.status) == (None, "succeeded")
    assert schedule.world.loop.now > 400
    started = [who for _, who, what in schedule.world.steps if what == "is started"]
    assert sorted(started) == ["controller", "learner", "rollout-0", "rollout-1"]
