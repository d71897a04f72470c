"""The ledger on a real Redis, transition by transition."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.errors import Damaged, InvalidRequest, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import MAX_LEASE_EXPIRIES, Ledger
from headrace_core.ledger.records import Lease, Refusal, StalenessBoundViolated, Step, TransitionOutcome
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job
from headrace_core.types.staleness import Limits
from headrace_core.types.trajectory import Group, sampled_completion

from .pipeline import Clock

LIMITS = Limits(batch_size=2, max_staleness=1, total_groups=20)


def a_group(group_id: int, version: int = 0) -> Group:
    tokens = np.array([5, 6, 7], np.int32)
    logprobs = np.array([-0.5, -0.25, -0.125], np.float32)
    done = sampled_completion(tokens, logprobs, np.full(3, version, np.int32), "stop", reward=1.0)
    return Group(group_id, 1, 0, version, np.array([1, 2], np.int32), (done, done))


@pytest.fixture
async def ledger(redis: Redis) -> Ledger:
    ledger = Ledger(redis, "ftjob-test")
    await ledger.open(LIMITS)
    return ledger


async def test_a_group_goes_from_admission_to_trained(ledger: Ledger) -> None:
    admission = await ledger.admit("rollout-0", version=0, want=10, lease_seconds=60)
    assert [lease.group_id for lease in admission.leases] == [0, 1, 2, 3]  # (1 + 1) × 2
    assert (await ledger.admit("rollout-0", 0, 10, 60)).refusal is Refusal.FULL
    for lease in reversed(admission.leases):
        assert await ledger.commit(lease, a_group(lease.group_id)) is TransitionOutcome.QUEUED
    term = await ledger.enlist()
    claim = await ledger.claim(term, LIMITS, "mask")
    assert [g.group_id for g in claim.groups] == [0, 1]  # admission order, not completion order
    step = Step(version=0, groups=(0, 1), ages={0: 12}, masked_tokens=0)
    assert await ledger.settle(term, step, "v1") is TransitionOutcome.SETTLED
    assert await ledger.newest() == (1, "v1")
    account = await ledger.counts()
    assert account.balanced
    assert account.states["trained"] == 2
    assert (await ledger.admit("rollout-0", 0, 10, 60)).refusal is Refusal.BEHIND
    assert [t.state for t in await ledger.history(0)] == ["leased", "queued", "claimed", "trained"]
    assert [s.groups for s in await ledger.steps()] == [(0, 1)]
    assert [g.group_id for g in await ledger.groups(step.groups)] == [0, 1]


async def test_a_step_beyond_the_bound_is_refused(ledger: Ledger) -> None:
    term = await ledger.enlist()
    with pytest.raises(StalenessBoundViolated):
        await ledger.settle(term, Step(0, (), {2: 1}, 0), "v1")


@pytest.mark.parametrize(
    ("ages", "masked", "says"),
    [
        ({0: 9, 1: 6}, 0, "9 tokens of age 0, of 6"),  # what is older is called young
        ({0: 7, 1: 5}, 0, "7 tokens of age 0, of 6"),
        ({0: 6}, 6, "6 tokens masked, of 0 older than 1"),
        ({0: 6, 1: 6}, 0, None),
        ({0: 6, 1: 3}, 0, None),  # who trains on less than was committed breaks no bound
    ],
)
async def test_the_ages_of_a_step_are_held_against_what_was_committed(
    ledger: Ledger, ages: dict[int, int], masked: int, says: str | None
) -> None:
    await committed(ledger, 3)
    (straggler,) = (await ledger.admit("rollout-1", 0, 1, 60)).leases
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    await ledger.settle(term, Step(0, (0, 1), {0: 12}, 0), "v1")
    assert straggler.group_id == 3
    await ledger.commit(straggler, replace(a_group(3), completions=a_group(3, version=1).completions))
    assert [g.group_id for g in (await ledger.claim(term, LIMITS, "mask")).groups] == [2, 3]
    settling = ledger.settle(term, Step(1, (2, 3), ages, masked), "v2")
    if says is None:
        assert await settling is TransitionOutcome.SETTLED
    else:
        with pytest.raises(StalenessBoundViolated, match=says):
            await settling
        assert (await ledger.newest())[0] == 1
        assert (await ledger.counts()).states["claimed"] == 2


async def test_tokens_beyond_the_bound_are_masked_or_the_step_is_refused(ledger: Ledger) -> None:
    await committed(ledger, 3)
    (straggler,) = (await ledger.admit("rollout-1", 0, 1, 60)).leases
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    await ledger.settle(term, Step(0, (0, 1), {0: 12}, 0), "v1")
    await committed(ledger, 1)
    await ledger.claim(term, LIMITS, "mask")
    await ledger.settle(term, Step(1, (2, 4), {0: 6, 1: 6}, 0), "v2")
    await ledger.commit(straggler, a_group(3))
    await committed(ledger, 1)
    await ledger.claim(term, LIMITS, "mask")
    for ages, masked in (({1: 6}, 0), ({0: 6, 1: 6}, 0), ({0: 6}, 5)):
        with pytest.raises(StalenessBoundViolated, match="contradicts its groups"):
            await ledger.settle(term, Step(2, (3, 5), ages, masked), "v3")
    assert await ledger.settle(term, Step(2, (3, 5), {0: 6}, 6), "v3") is TransitionOutcome.SETTLED


async def test_groups_of_a_release_that_noted_no_ages_are_refused_with_what_to_do(ledger: Ledger, redis: Redis) -> None:
    await committed(ledger, 2)
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    await redis.hdel(JobKeys("ftjob-test").group(1), "trainable")
    to_do = r"group:1 trainable.*an older release committed: fork a new job from a checkpoint"
    with pytest.raises(Damaged, match=to_do):
        await ledger.settle(term, Step(0, (0, 1), {0: 12}, 0), "v1")
    assert (await ledger.counts()).states["claimed"] == 2


async def committed(ledger: Ledger, want: int) -> list[Lease]:
    """Lease and commit `want` groups."""
    version, _ = await ledger.newest()
    leases = list((await ledger.admit("rollout-0", version, want, 60)).leases)
    for lease in leases:
        assert await ledger.commit(lease, a_group(lease.group_id, version)) is TransitionOutcome.QUEUED
    return leases


async def test_an_expired_lease_is_issued_again_and_its_old_holder_is_refused(redis: Redis) -> None:
    clock = Clock()
    ledger = Ledger(redis, "ftjob-lapse", clock)
    await ledger.open(LIMITS)
    first = (await ledger.admit("rollout-0", 0, 1, lease_seconds=10)).leases[0]
    clock.now += 9
    assert await ledger.renew([first], 10) == set()
    clock.now += 9
    assert (await ledger.admit("rollout-1", 0, 1, 10)).leases[0].group_id == 1  # renewed: not yet
    clock.now += 2
    second = (await ledger.admit("rollout-1", 0, 1, 10)).leases[0]
    assert (second.group_id, second.attempt) == (0, 2)
    assert await ledger.renew([first], 10) == {0}
    assert await ledger.commit(first, a_group(0)) is TransitionOutcome.FENCED
    assert await ledger.fail(first, TransitionOutcome.GENERATION_FAILED, "late") is TransitionOutcome.FENCED
    assert await ledger.release([first]) == 0
    assert await ledger.commit(second, a_group(0)) is TransitionOutcome.QUEUED
    assert (await ledger.counts()).fenced == 2


async def test_an_expired_lease_that_nobody_took_over_still_commits(redis: Redis) -> None:
    clock = Clock()
    ledger = Ledger(redis, "ftjob-late", clock)
    await ledger.open(LIMITS)
    lease = (await ledger.admit("rollout-0", 0, 1, lease_seconds=10)).leases[0]
    clock.now += 1000
    assert await ledger.commit(lease, a_group(0)) is TransitionOutcome.QUEUED


async def test_of_groups_that_failed_the_newest_thousand_are_kept(ledger: Ledger, redis: Redis) -> None:
    """A job may meet any number of them: 27,000 in half a minute were seen, each with its history in Redis."""
    for _ in range(600):
        admitted = (await ledger.admit("rollout-0", 0, 2, 60)).leases
        for lease in admitted:
            outcome = (TransitionOutcome.GENERATION_FAILED, TransitionOutcome.REWARD_FAILED)[lease.group_id % 2]
            assert await ledger.fail(lease, outcome, "no engine can serve it") is outcome
    account = await ledger.counts()
    assert (account.admitted, account.balanced) == (1200, True)
    assert account.states["generation_failed"] == account.states["reward_failed"] == 600
    assert len([key async for key in redis.scan_iter(JobKeys("ftjob-test").group("*"), count=5000)]) == 1000
    with pytest.raises(NotFound, match="group 199 is forgotten"):
        await ledger.history(199)
    assert [t.state for t in await ledger.history(200)] == ["leased", "generation_failed"]
    forgotten = Lease(0, "rollout-0#1", 1, 0)
    assert await ledger.commit(forgotten, a_group(0)) is TransitionOutcome.FENCED
    assert await ledger.fail(forgotten, TransitionOutcome.GENERATION_FAILED, "again") is TransitionOutcome.FENCED
    assert await ledger.renew([forgotten], 60) == {0}
    assert (await ledger.counts()).states == account.states


async def test_a_group_that_kills_every_worker_ends(redis: Redis) -> None:
    clock = Clock()
    ledger = Ledger(redis, "ftjob-poison", clock)
    await ledger.open(Limits(batch_size=1, max_staleness=0, total_groups=1))
    for attempt in range(1, MAX_LEASE_EXPIRIES + 1):
        lease = (await ledger.admit("rollout-0", 0, 1, 10)).leases[0]
        assert (lease.group_id, lease.attempt) == (0, attempt)
        clock.now += 10
    assert (await ledger.admit("rollout-0", 0, 1, 10)).leases[0].group_id == 1  # its place goes to a new group
    assert (await ledger.history(0))[-1].state == "generation_failed"


async def test_what_is_given_back_is_no_lapse_and_no_failure(ledger: Ledger) -> None:
    for _ in range(3 * MAX_LEASE_EXPIRIES):
        leases = (await ledger.admit("rollout-0", 0, 1, 60)).leases
        assert [lease.group_id for lease in leases] == [0]
        assert await ledger.release(leases) == 1
    lease = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    assert await ledger.fail(lease, TransitionOutcome.REWARD_FAILED, "first", attempts=2) is TransitionOutcome.LEASED
    lease = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    assert lease.group_id == 0
    assert (
        await ledger.fail(lease, TransitionOutcome.REWARD_FAILED, "sec\nond", attempts=2)
        is TransitionOutcome.REWARD_FAILED
    )
    assert (await ledger.history(0))[-1].note == "sec ond"
    with pytest.raises(ValueError, match="cannot fail as"):
        await ledger.fail(lease, TransitionOutcome.QUEUED, "")


async def test_a_new_learner_fences_out_the_old_one_and_trains_what_it_had_claimed(ledger: Ledger) -> None:
    await committed(ledger, 4)
    old = await ledger.enlist()
    claim = await ledger.claim(old, LIMITS, "mask")
    new = await ledger.enlist()
    again = await ledger.claim(new, LIMITS, "mask")
    assert [g.group_id for g in again.groups] == [g.group_id for g in claim.groups] == [0, 1]
    step = Step(0, (0, 1), {0: 12}, 0)
    # the old learner's step is the very same, and the groups are claimed: only its term tells it apart
    assert await ledger.settle(old, step, "v1-t1") is TransitionOutcome.FENCED
    assert await ledger.filter(old, [0], "no use") is TransitionOutcome.FENCED
    assert (await ledger.claim(old, LIMITS, "mask")).outcome is TransitionOutcome.FENCED
    assert await ledger.newest() == (0, None)
    assert await ledger.settle(new, step, "v1-t2") is TransitionOutcome.SETTLED
    assert await ledger.settle(new, step, "v1-t2") is TransitionOutcome.SETTLED  # the same call, sent again
    assert await ledger.settle(new, Step(0, (2, 3), {0: 12}, 0), "v1-t2") is TransitionOutcome.FENCED
    assert await ledger.newest() == (1, "v1-t2")


async def test_a_step_settles_with_claimed_groups_only_and_each_once(ledger: Ledger) -> None:
    await committed(ledger, 2)
    term = await ledger.enlist()
    assert await ledger.settle(term, Step(0, (0, 1), {}, 0), "v1") is TransitionOutcome.FENCED
    await ledger.claim(term, LIMITS, "mask")
    with pytest.raises(ValueError, match="twice"):
        await ledger.settle(term, Step(0, (0, 0), {}, 0), "v1")


async def test_a_commit_holds_what_its_lease_says(ledger: Ledger) -> None:
    lease = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    with pytest.raises(ValueError, match="group 5 does not belong to the lease of group 0"):
        await ledger.commit(lease, a_group(5))
    await committed(ledger, 2)
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    await ledger.settle(term, Step(0, (1, 2), {}, 0), "v1")
    newer = (await ledger.admit("rollout-0", 1, 1, 60)).leases[0]
    with pytest.raises(StalenessBoundViolated, match="version 0"):
        await ledger.commit(newer, a_group(newer.group_id, version=0))


async def test_a_checkpoint_lets_covered_groups_go_and_keeps_the_rest(ledger: Ledger) -> None:
    term = await ledger.enlist()
    steps = []
    for version in range(3):
        await committed(ledger, 2)
        claim = await ledger.claim(term, LIMITS, "mask")
        steps.append(Step(version, tuple(g.group_id for g in claim.groups), {}, 0))
        await ledger.settle(term, steps[-1], f"v{version + 1}")
    assert await ledger.forget_before(2) == 4
    assert await ledger.forget_before(2) == 0
    with pytest.raises(NotFound, match="group 2 is no longer stored"):
        await ledger.groups(steps[1].groups)
    assert [g.group_id for g in await ledger.groups(steps[2].groups)] == list(steps[2].groups)
    assert await ledger.steps(2) == steps[2:]
    assert await ledger.forget_before(99) == 2  # of what is settled; later steps are not covered before they are there
    await committed(ledger, 2)
    claim = await ledger.claim(term, LIMITS, "mask")
    await ledger.settle(term, Step(3, tuple(g.group_id for g in claim.groups), {}, 0), "v4")
    assert await ledger.forget_before(4) == 2


async def test_a_filtered_group_makes_room_for_another(ledger: Ledger) -> None:
    await committed(ledger, 4)
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    assert await ledger.filter(term, [1], "all rewards equal") is TransitionOutcome.FILTERED
    assert await ledger.filter(term, [3], "not claimed") is TransitionOutcome.FENCED
    assert [lease.group_id for lease in (await ledger.admit("rollout-0", 0, 9, 60)).leases] == [4]
    assert (await ledger.history(1))[-1].note == "all rewards equal"


async def test_what_was_trained_is_kept_until_the_job_is_over(redis: Redis, ledger: Ledger) -> None:
    """Its training has ended, but it is paused: whoever goes on with it may have to make the last state again."""
    jobs, stream = JobStore(redis), JobKeys("ftjob-test").groups
    job = Job(id="ftjob-test", created_at=0.0, model="m", model_path="", training_file="", status="running")
    await jobs.create(job)
    await committed(ledger, 3)
    term = await ledger.enlist()
    claim = await ledger.claim(term, LIMITS, "mask")
    step = Step(0, tuple(g.group_id for g in claim.groups), {}, 0)
    await ledger.settle(term, step, "v1")
    await jobs.move(job.id, "paused")
    assert await ledger.close("finished") == 1
    assert [g.group_id for g in await ledger.groups(step.groups)] == [0, 1]
    await jobs.move(job.id, "cancelled")
    assert await ledger.close("cancelled") == 0
    assert not await run(redis.exists(stream))


async def test_after_the_end_nothing_goes_on_and_nothing_is_kept(redis: Redis, ledger: Ledger) -> None:
    leases = await committed(ledger, 3)
    held = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    term = await ledger.enlist()
    await ledger.claim(term, LIMITS, "mask")
    assert await ledger.close("cancelled by the user") == 4
    assert await ledger.close("again") == 0
    assert (await ledger.counts()).states["cancelled"] == 4
    assert (await ledger.admit("rollout-0", 0, 1, 60)).refusal is Refusal.CLOSED
    assert await ledger.commit(held, a_group(held.group_id)) is TransitionOutcome.FENCED
    assert (await ledger.claim(term, Limits(1, 1, 20), "mask")).groups == ()
    assert await ledger.settle(term, Step(0, (0, 1), {}, 0), "v1") is TransitionOutcome.CLOSED
    assert await ledger.filter(term, [0], "no use") is TransitionOutcome.CLOSED
    assert not await run(redis.exists(JobKeys("ftjob-test").groups))
    assert (await ledger.history(leases[0].group_id))[-1].note == "cancelled by the user"
    with pytest.raises(NotFound, match="no group 99"):
        await ledger.history(99)


async def test_a_signal_wakes_who_waits_and_silence_ends_in_time(ledger: Ledger) -> None:
    lease = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    assert await ledger.signal("0", timeout=0.05) == "0"
    waiting = asyncio.create_task(ledger.signal("0", timeout=30))
    await ledger.commit(lease, a_group(0))
    heard = await asyncio.wait_for(waiting, 10)
    assert heard != "0"
    assert await ledger.signal(heard, timeout=0.05) == heard


@pytest.mark.parametrize("limits", [Limits(0, 1, 1), Limits(1, -1, 1), Limits(1, 1, 0)])
async def test_limits_that_make_no_sense_are_refused(ledger: Ledger, limits: Limits) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.open(limits)


async def test_the_leases_of_a_dead_worker_end_at_once_and_nobody_elses(ledger: Ledger) -> None:
    dead = await ledger.admit("rollout-1", 0, 2, 60)
    await ledger.admit("rollout-10", 0, 1, 60)
    assert await ledger.expire_leases_of("rollout-1") == 2
    again = await ledger.admit("rollout-1", 0, 3, 60)
    assert [lease.group_id for lease in again.leases[:2]] == [lease.group_id for lease in dead.leases]
    assert await ledger.commit(dead.leases[0], a_group(dead.leases[0].group_id)) is TransitionOutcome.FENCED
    assert (await ledger.counts()).balanced
