"""The staleness bound: thousands of simulated schedules, and the arithmetic piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Step
from headrace_core.types.staleness import Late, Limits, Pending, Window, ages, capacity, contributes, select
from headrace_core.types.trajectory import NO_VERSION

from .paper_ledger import PaperLedger
from .pipeline import Clock, SimulatedLearner, a_group, simulate

BOUNDS = (0, 1, 2, 4)
SCHEDULES = 200
"""For each bound and each setting of `late`."""


def limits_of(bound: int, seed: int, steps: int) -> Limits:
    batch_size = 1 + seed % 4
    return Limits(batch_size, bound, steps * batch_size)


def assert_bound_held(learner: SimulatedLearner, limits: Limits, late: Late) -> None:
    bound = limits.max_staleness
    for number, trained in enumerate(learner.trained):
        step = trained.step
        assert step.version == number
        assert len(step.groups) == limits.batch_size
        assert max(step.ages, default=0) <= bound
        tokens = [step.version - version for group in trained.versions for version in group]
        assert sum(step.ages.values()) == sum(age <= bound for age in tokens)  # all that are young enough, no others
        assert step.masked_tokens == sum(age > bound for age in tokens)
        if late != "mask":
            assert step.masked_tokens == 0
    if late != "drop":
        assert learner.dropped == 0


@pytest.mark.parametrize("late", ["mask", "drop", "wait"])
@pytest.mark.parametrize("bound", BOUNDS)
async def test_the_bound_holds_on_every_schedule_and_every_job_ends(bound: int, late: Late) -> None:
    stale = 0
    for seed in range(SCHEDULES):
        limits, clock = limits_of(bound, seed, steps=10), Clock()
        learner = await simulate(PaperLedger(clock), clock, limits, late, seed)
        assert_bound_held(learner, limits, late)
        stale += learner.dropped + sum(t.step.masked_tokens for t in learner.trained)
    if bound > 0:
        assert (stale > 0) == (late != "wait")  # the schedules are wild enough that the hard edge is needed


@pytest.mark.parametrize("late", ["mask", "drop", "wait"])
@pytest.mark.parametrize("bound", BOUNDS)
async def test_staleness_on_the_ledger(redis: Redis, bound: int, late: Late) -> None:
    """The real ledger keeps the bound, and the books of a schedule are those of its twin in memory."""
    for seed in range(2):
        limits, clock, paper_clock = limits_of(bound, seed + 2, steps=5), Clock(), Clock()
        paper = PaperLedger(paper_clock)
        ledger = Ledger(redis, f"ftjob-{bound}-{late}-{seed}", clock)
        expected = await simulate(paper, paper_clock, limits, late, seed)
        learner = await simulate(ledger, clock, limits, late, seed)
        assert_bound_held(learner, limits, late)
        assert learner.trained == expected.trained
        books, paper_books = await ledger.counts(), await paper.counts()
        assert books.balanced
        assert (books.admitted, books.states) == (paper_books.admitted, paper_books.states)
        assert (books.masked_tokens, books.largest_age) == (paper_books.masked_tokens, paper_books.largest_age)


# ── the induction behind `wait` ──────────────────────────────────────────────────────────────────────────────────────


def feasible(pending: list[Pending], version: int, batch_size: int, bound: int) -> bool:
    """Whether steps of `batch_size` groups, the first of which updates `version`, can take all in time."""
    return all(
        sum(p.version + bound <= due for p in pending) <= max(0, due - version + 1) * batch_size
        for due in {p.version + bound for p in pending}
    )


@st.composite
def feasible_windows(draw: st.DrawFn) -> tuple[Window, int, int]:
    batch_size, bound = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    version = draw(st.integers(bound, 9))
    kept: list[Pending] = []
    for number in range(draw(st.integers(0, (bound + 1) * batch_size))):
        newest = [Pending(number, draw(st.integers(version - bound, version)))]
        kept += newest if feasible(kept + newest, version, batch_size, bound) else []
    done = draw(st.sets(st.sampled_from([p.group_id for p in kept]))) if kept else set()
    queued = tuple(p for p in kept if p.group_id in done)
    return Window(version, queued, tuple(p for p in kept if p.group_id not in done)), batch_size, bound


@given(feasible_windows())
@settings(max_examples=600, deadline=None, derandomize=True)
def test_waiting_keeps_every_deadline_feasible_and_never_waits_for_nothing(case: tuple[Window, int, int]) -> None:
    """If all groups under way can be trained in time before a step, then also after it; and the wait has an end.

    Between steps nothing breaks it: pacing admits at most (bound + 1) × batch_size groups in all, new ones and reissued
    ones are due last, and a commit or an end of a group only eases it.
    """
    window, batch_size, bound = case
    chosen = select(window, batch_size, bound, "wait")
    under_way = [*window.queued, *window.leased]
    if chosen.take:
        assert list(chosen.take) == sorted(set(chosen.take))
        assert len(chosen.take) == batch_size
        assert all(p.version + bound >= window.version for p in under_way)
        left = [p for p in under_way if p.group_id not in chosen.take]
        assert feasible(left, window.version + 1, batch_size, bound)
    elif len(window.queued) >= batch_size:
        assert set(chosen.wait_for) <= {p.group_id for p in window.leased}
        assert chosen.wait_for  # somebody is named; once all of them are in, the step can begin
    else:
        assert chosen.missing == batch_size - len(window.queued)
    all_in = Window(window.version, tuple(sorted(under_way, key=lambda p: p.group_id)), ())
    assert bool(select(all_in, batch_size, bound, "wait").take) == (len(under_way) >= batch_size)


def test_wait_takes_the_next_due_and_names_whom_it_waits_for() -> None:
    window = Window(3, queued=(Pending(5, 3), Pending(6, 2)), leased=(Pending(4, 2),))
    assert select(window, 1, 1, "wait").wait_for == (4,)  # 4 and 6 are both due at version 3, and a step takes one
    assert select(Window(3, window.queued, ()), 1, 1, "wait").take == (6,)


def test_drop_and_mask_differ_on_a_late_group() -> None:
    window = Window(3, queued=(Pending(0, 1), Pending(1, 2), Pending(2, 3)), leased=())
    assert select(window, 2, 1, "mask").take == (0, 1)
    dropping = select(window, 2, 1, "drop")
    assert (dropping.take, dropping.drop) == ((1, 2), (0,))


# ── capacity and ages ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("batch_size", "total"), [(1, 3), (3, 30), (4, 10)])
async def test_capacity_is_what_the_ledger_grants(redis: Redis, batch_size: int, bound: int, total: int) -> None:
    limits = Limits(batch_size, bound, total)
    ledger = Ledger(redis, f"ftjob-{batch_size}-{bound}")
    await ledger.open(limits)
    term, trained, version = await ledger.enlist(), 0, 0
    while trained < total:
        for part in (1, 2, 10_000):  # in parts: each time what is left
            states = (await ledger.counts()).states
            outstanding = states["leased"] + states["queued"] + states["claimed"]
            admission = await ledger.admit("w", version, part, 60)
            assert len(admission.leases) == min(part, capacity(limits, outstanding, trained))
            for lease in admission.leases:
                await ledger.commit(lease, a_group(lease.group_id, [version]))
        claim = await ledger.claim(term, limits, "mask")
        if not claim.groups:
            break  # total is not a multiple of batch_size: what is left is no batch
        await ledger.settle(term, Step(version, tuple(g.group_id for g in claim.groups), {}, 0), f"v{version + 1}")
        trained, version = trained + batch_size, version + 1
    assert trained == total - total % batch_size


def test_ages_and_contributions_of_the_documented_example() -> None:
    versions = np.array([NO_VERSION, 6, 7], np.int32)
    assert ages(versions, 8).tolist() == [0, 2, 1]
    assert contributes(versions, 8, 1).tolist() == [True, False, True]
