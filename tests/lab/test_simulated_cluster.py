"""The simulated cluster: real scheduling in virtual time holds its bound, repeats, and takes the time it should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evidence.async_speed import areal_figures as areal
from headrace_lab.virtual.simulated_cluster import Cluster, Evaluations, measure
from headrace_lab.virtual.simulated_engine import DecodeSpeed, Lengths

pytestmark = pytest.mark.slow

SMALL = Cluster(
    rollout_devices=2,
    speed=DecodeSpeed(base=0.01, each=0.0001, update_pause=0.5),
    slots=32,
    trained_per_second=2000.0,
    publish_seconds=0.5,
    batch_size=8,
    group_size=4,
    lengths=Lengths(mean=1000.0, cap=6400, capped_share=0.02, seed=1),
)


def test_asynchronous_is_faster_holds_its_bound_and_repeats() -> None:
    synchronous, asynchronous, again = (measure(SMALL, bound, warm=2, steps=4) for bound in (0, 3, 3))
    assert asynchronous == again
    assert synchronous.largest_age == 0
    assert synchronous.masked_share == 0.0
    assert 1 <= asynchronous.largest_age <= 3
    assert asynchronous.tokens_per_second > 1.5 * synchronous.tokens_per_second
    assert asynchronous.trainer_busy > 0.9  # the slower half of the pipeline never waits


def test_a_synchronous_step_is_generation_then_training_and_nothing_else() -> None:
    """All completions reach the cap: its decode steps, the training of its tokens, publication and the pause."""
    cap = 640
    everyone_at_the_cap = Lengths(mean=0.9999 * cap, cap=cap, capped_share=0.9999)
    one = replace(SMALL, rollout_devices=1, slots=32, lengths=everyone_at_the_cap)
    found = measure(one, 0, warm=1, steps=3)
    tokens = 8 * 4 * cap
    expected = cap * (0.01 + 32 * 0.0001) + tokens / 2000.0 + 0.5 + 0.5
    assert found.seconds == pytest.approx(expected, rel=0.01)
    assert found.tokens_per_second == pytest.approx(tokens / expected, rel=0.01)


def test_an_evaluation_takes_its_worker_the_time_of_its_completions() -> None:
    """As many as a step has, every second step; synchronous, so that some of it falls in the time of training."""
    one = replace(SMALL, rollout_devices=1)
    without, found = (measure(one, 0, 2, 4, evaluations) for evaluations in (None, Evaluations(rows=32, every=2)))
    generation = without.seconds - without.tokens_per_second * without.seconds / 2000.0 - 0.5
    assert without.seconds < found.seconds < without.seconds + generation / 2


def test_areal_s_devices_meet_the_facts_they_were_derived_from() -> None:
    speed = areal.decode_speed()
    a_step, each_device = areal.TOKENS_A_STEP, areal.TOKENS_A_STEP / areal.ROLLOUT_DEVICES
    assert areal.SLOTS / (speed.base + areal.SLOTS * speed.each) == pytest.approx(areal.GENERATED_PER_DEVICE)
    generation = areal.CAP * speed.base + each_device * speed.each
    assert generation + a_step / areal.TRAINED_PER_SECOND == pytest.approx(41.0 * 3600 / 250)
    assert a_step / (512 * 16) == pytest.approx(9275, abs=1)
    assert 14.8 * 3600 / 250 * areal.PUBLISHED[4] * 1e3 == pytest.approx(a_step, rel=0.001)  # the other clock
