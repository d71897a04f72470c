"""Settings that change while a job runs: on record before they act, from a version that is not claimed, for all."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidState
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Claim, Refusal, StalenessBoundViolated, Step, Term, TransitionOutcome
from headrace_core.types.job import Job
from headrace_core.types.staleness import Late, Limits

from .pipeline import Clock, SimulatedLearner, SimulatedWorker, a_group

SETTINGS = Hyperparameters.model_validate(
    {"n_steps": 20, "batch_size": 2, "max_staleness": 1, "group_size": 4, "learning_rate": 1e-5}
)
LIMITS = SETTINGS.limits(100)


class Bench:
    """One job: its ledger, and the record as one reader knows it."""

    def __init__(self, redis: Redis, job_id: str) -> None:
        self.job_id, self.redis = job_id, redis
        self.ledger, self.jobs, self.live = Ledger(redis, job_id), JobStore(redis), SettingsLog(redis, job_id, SETTINGS)

    async def open(self) -> Term:
        whole = SETTINGS.model_dump()
        job = Job(id=self.job_id, created_at=0.0, model="m", model_path="", training_file="", hyperparameters=whole)
        await self.jobs.create(job)
        await self.ledger.open(LIMITS)
        return await self.ledger.enlist()

    async def queue(self, count: int, age: int = 0) -> None:
        """Groups of tokens that are so old, as though they had been leased then."""
        version, _ = await self.ledger.newest()
        for lease in (await self.ledger.admit("w", version, count, 60)).leases:
            old = replace(lease, version=version - age)
            await self.ledger.commit(old, a_group(lease.group_id, [version - age]))


@pytest.fixture
async def bench(redis: Redis) -> Bench:
    return Bench(redis, "ftjob-live")


async def test_a_change_holds_from_a_version_that_is_not_claimed(bench: Bench) -> None:
    term = await bench.open()
    first = await bench.live.change({"max_staleness": 3, "learning_rate": 2e-5}, "alice")
    assert first is not None
    assert [(c.name, c.before, c.after, c.from_version, c.by) for c in first] == [
        ("max_staleness", 1, 3, 0, "alice"), ("learning_rate", 1e-5, 2e-5, 0, "alice")
    ]  # fmt: skip
    await bench.queue(2, age=3)
    assert (
        await bench.ledger.claim(term, LIMITS, "mask")
    ).outcome is TransitionOutcome.GONE  # it does not know of the changes
    claim = await bench.ledger.claim(term, LIMITS, "mask", changes=2)
    assert claim.groups
    second = await bench.live.change({"max_staleness": 0}, "bob")
    assert second is not None
    assert second[0].from_version == 1  # version 0 is claimed
    assert [bench.live.at(v).max_staleness for v in range(3)] == [3, 0, 0]
    assert bench.live.newest.max_staleness == 0
    assert bench.live.at(5).learning_rate == 2e-5
    step = Step(0, tuple(g.group_id for g in claim.groups), {3: 1}, 0)
    assert await bench.ledger.settle(term, step, "v1") is TransitionOutcome.SETTLED  # by the bound of its own version
    with pytest.raises(StalenessBoundViolated):
        await bench.ledger.settle(term, Step(1, (), {1: 1}, 0), "v2")


async def test_the_oldest_token_is_held_against_the_bound_of_its_own_step(bench: Bench) -> None:
    term = await bench.open()
    assert (await bench.ledger.counts()).largest_age_bound is None

    async def trained(version: int, age: int) -> tuple[int, int | None]:
        await bench.queue(2, age)
        claim = await bench.ledger.claim(term, bench.live.at(version).limits(100), "mask", 0, len(bench.live.changes))
        step = Step(version, tuple(g.group_id for g in claim.groups), {age: 1}, 0)
        assert await bench.ledger.settle(term, step, f"v{version + 1}") is TransitionOutcome.SETTLED
        books = await bench.ledger.counts()
        return books.largest_age, books.largest_age_bound

    assert await trained(0, 0) == (0, 1)
    await bench.live.change({"max_staleness": 4}, "alice")
    assert await trained(1, 3) == (3, 4)
    await bench.live.change({"max_staleness": 2}, "alice")
    assert await trained(2, 2) == (3, 4), "the bound now is 2, and no step of it trained an older token"


async def test_versions_on_record_never_decrease(bench: Bench) -> None:
    term = await bench.open()
    await bench.queue(2)
    await bench.ledger.claim(term, LIMITS, "mask")
    await bench.live.change({"max_staleness": 2}, "alice")
    await bench.ledger.enlist()  # what was claimed is queued again: version 0 is free
    await bench.live.change({"max_staleness": 0}, "alice")
    assert [c.from_version for c in bench.live.changes] == [1, 1]
    assert [bench.live.at(v).max_staleness for v in (0, 1)] == [1, 0]


async def test_any_reader_finds_the_same_whatever_settings_it_began_with(bench: Bench) -> None:
    term = await bench.open()
    await bench.queue(2)
    await bench.ledger.claim(term, LIMITS, "mask")
    await bench.live.change({"max_staleness": 2, "group_size": 8}, "alice")
    job = await bench.jobs.get(bench.job_id)
    assert job.hyperparameters == SETTINGS.model_dump() | {"max_staleness": 2, "group_size": 8}
    later = SettingsLog(bench.redis, bench.job_id, Hyperparameters.model_validate(job.hyperparameters))
    await later.refresh()
    assert [later.at(v) for v in range(3)] == [bench.live.at(v) for v in range(3)]
    assert later.at(0) == SETTINGS


async def test_who_has_not_read_all_of_the_record_changes_nothing(bench: Bench) -> None:
    await bench.open()
    other = SettingsLog(bench.redis, bench.job_id, SETTINGS)
    await bench.live.change({"max_staleness": 3}, "alice")
    assert await other.change({"max_staleness": 0}, "bob") is None
    await other.refresh()
    (made,) = await other.change({"max_staleness": 0}, "bob") or []
    assert (made.before, made.after) == (3, 0)
    assert await other.change({"max_staleness": 0}, "bob") == []  # it is so already
    await bench.jobs.move(bench.job_id, "cancelled")
    with pytest.raises(InvalidState, match="cancelled"):
        await other.change({"max_staleness": 1}, "bob")


async def test_racing_changes_are_all_on_record_one_after_the_other(bench: Bench) -> None:
    await bench.open()

    async def change(bound: int) -> None:
        live = SettingsLog(bench.redis, bench.job_id, SETTINGS)
        while await live.change({"max_staleness": bound}, f"user {bound}") is None:
            await live.refresh()

    async with asyncio.timeout(30):
        await asyncio.gather(*(change(bound) for bound in range(2, 12)))
    await bench.live.refresh()
    assert {c.after for c in bench.live.changes} == set(range(2, 12))
    befores = [c.before for c in bench.live.changes]
    assert befores == [1, *(c.after for c in bench.live.changes[:-1])]


async def test_the_window_follows_the_newest_bound(bench: Bench) -> None:
    await bench.open()
    assert len((await bench.ledger.admit("w", 0, 99, 60)).leases) == 4
    await bench.live.change({"max_staleness": 2}, "alice")
    assert len((await bench.ledger.admit("w", 0, 99, 60)).leases) == 2
    await bench.live.change({"max_staleness": 0}, "alice")
    assert (await bench.ledger.admit("w", 0, 99, 60)).refusal is Refusal.FULL
    assert (await bench.ledger.counts()).balanced
    queues = await bench.ledger.queues()
    assert (queues.max_staleness, [(s.name, s.depth) for s in queues.stages]) == (
        0, [("leased", 6), ("queued", 0), ("claimed", 0)]
    )  # fmt: skip


class LiveLedger(Ledger):
    """Says with each claim how much of the record `live` knows."""

    live: SettingsLog

    async def claim(self, term: Term, limits: Limits, late: Late, held: int = 0, changes: int = 0) -> Claim:
        return await super().claim(term, limits, late, held, len(self.live.changes))


class LiveLearner(SimulatedLearner):
    """Claims by the record, as the real one does."""

    async def tick(self) -> None:
        assert isinstance(self.ledger, LiveLedger)
        await self.ledger.live.refresh()
        if not self.batch:
            self.limits = self.ledger.live.at((await self.ledger.newest())[0]).limits(100)
        await super().tick()


_jobs = itertools.count()


@given(
    seed=st.integers(0, 2**20),
    late=st.sampled_from(["mask", "drop", "wait"]),
    bounds=st.lists(st.tuples(st.integers(1, 25), st.integers(0, 5)), max_size=15),
)
@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the fixture is only a connection; every example has a job of its own
@pytest.mark.slow
async def test_no_token_older_than_the_bound_of_its_version_is_trained(
    redis: Redis, seed: int, late: Late, bounds: list[tuple[int, int]]
) -> None:
    """Workers and learner crash and stall as in `pipeline`; after so many ticks each, the bound changes."""
    bench, clock, rng = Bench(redis, f"ftjob-bound-{next(_jobs)}"), Clock(), random.Random(seed)
    bench.ledger = ledger = LiveLedger(redis, bench.job_id, clock)
    ledger.live = SettingsLog(redis, bench.job_id, SETTINGS)
    await bench.open()
    workers = [SimulatedWorker(f"w{i}", bench.ledger, 4, rng) for i in range(2)]
    learner = LiveLearner(bench.ledger, Limits(LIMITS.batch_size, 1, LIMITS.total_groups), late, rng)
    parties: list[SimulatedWorker | LiveLearner] = [*workers, learner]
    due = list(itertools.accumulate(ticks for ticks, _ in bounds))
    for tick in range(3_000):
        clock.now += 1
        for _, bound in (b for at, b in zip(due, bounds, strict=True) if at == tick):
            await bench.live.change({"max_staleness": bound}, "chance")
        for party in rng.sample(parties, len(parties)):
            await party.tick()
        if len(learner.trained) == SETTINGS.steps(100):
            break
    assert len(learner.trained) == SETTINGS.steps(100), "the job is stuck"
    for trained in learner.trained:
        bound = bench.live.at(trained.step.version).max_staleness
        assert max(trained.step.ages, default=0) <= bound
    assert (await bench.ledger.counts()).balanced
