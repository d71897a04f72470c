"""The byte bound: a job's encoded groups stay within its share of Redis, whatever stalls, and the job goes on."""

from __future__ import annotations

import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Refusal, TransitionOutcome
from headrace_core.types.staleness import Limits
from headrace_core.types.trajectory import Group, encode, sampled_completion
from headrace_lab.training.trained_steps import step_of

BATCH, WINDOW = 2, 10
LIMITS = Limits(batch_size=BATCH, max_staleness=WINDOW // BATCH - 1, total_groups=60)
LONG = 4000
"""Tokens of a completion."""


def long_group(group_id: int, version: int = 0, length: int = LONG) -> Group:
    tokens, versions = np.arange(length, dtype=np.int32), np.full(length, version, np.int32)
    done = sampled_completion(tokens, np.zeros(length, np.float32), versions, "stop", reward=1.0)
    return Group(group_id, 1, group_id, version, np.array([1, 2], np.int32), (done,))


ONE = len(encode(long_group(0)))


@pytest.fixture
async def ledger(redis: Redis) -> Ledger:
    ledger = Ledger(redis, "ftjob-bytes")
    await ledger.open(LIMITS)
    return ledger


async def admitted(ledger: Ledger) -> list[int]:
    """Commit all that is given now; their numbers."""
    version, _ = await ledger.newest()
    leases = (await ledger.admit("rollout-0", version, 99, 60)).leases
    for lease in leases:
        assert await ledger.commit(lease, long_group(lease.group_id, version)) is TransitionOutcome.QUEUED
    return [lease.group_id for lease in leases]


async def a_step(ledger: Ledger) -> None:
    term = await ledger.enlist()
    claim = await ledger.claim(term, LIMITS, "mask")
    assert len(claim.groups) == BATCH
    await ledger.settle(term, step_of(claim, LIMITS.max_staleness), f"v{claim.version + 1}")


async def test_without_a_share_the_window_alone_decides(ledger: Ledger) -> None:
    assert len(await admitted(ledger)) == WINDOW
    now = await ledger.queues()
    assert (now.bytes, now.share, now.held_back) == (WINDOW * ONE, 0, 0)
    assert [s.bytes for s in now.stages] == [0, WINDOW * ONE, 0]


async def test_a_stalled_learner_leaves_the_bytes_within_the_share(ledger: Ledger) -> None:
    await ledger.allot(5 * ONE)
    assert len(await admitted(ledger)) == BATCH, "no group is known yet: only what a step needs"
    assert len(await admitted(ledger)) == 3
    for _ in range(20):
        admission = await ledger.admit("rollout-0", 0, 99, 60)
        assert (admission.leases, admission.refusal) == ((), Refusal.MEMORY)
    now = await ledger.queues()
    assert now.bytes == 5 * ONE == now.share
    assert now.held_back == 20
    await ledger.allot(8 * ONE)
    assert len(await admitted(ledger)) == 3, "with a larger share it goes on"


async def test_groups_being_generated_count_as_large_as_the_mean(ledger: Ledger) -> None:
    await ledger.allot(5 * ONE)
    await admitted(ledger)
    assert len((await ledger.admit("rollout-0", 0, 99, 60)).leases) == 3
    assert (await ledger.admit("rollout-1", 0, 99, 60)).refusal is Refusal.MEMORY


@pytest.mark.parametrize("share", [1, ONE, 3 * ONE, 7 * ONE])
async def test_a_job_ends_with_any_share_and_stays_near_it(ledger: Ledger, share: int) -> None:
    await ledger.allot(share)
    largest, saved = 0, [0]
    for version in range(LIMITS.total_groups // BATCH):
        while await admitted(ledger):
            pass
        await a_step(ledger)
        largest = max(largest, (await ledger.queues()).bytes)
        if await ledger.needs_checkpoint() or version % 10 == 9:  # as the learner does
            await ledger.forget_before(saved[-1])
            saved.append(version + 1)
    books = await ledger.counts()
    assert books.balanced
    assert books.states["trained"] == LIMITS.total_groups
    needed = 3 * BATCH * ONE  # the next step's groups, and those of two steps that no two checkpoints hold
    assert largest <= max(share, needed)
    await ledger.forget_before(99)
    assert (await ledger.queues()).bytes == 0, "what was forgotten is still counted"


async def test_a_commit_that_arrives_twice_counts_its_bytes_once(ledger: Ledger) -> None:
    lease = (await ledger.admit("rollout-0", 0, 1, 60)).leases[0]
    for _ in range(2):
        assert await ledger.commit(lease, long_group(lease.group_id)) is TransitionOutcome.QUEUED
    assert (await ledger.queues()).bytes == ONE


async def test_every_way_out_takes_the_bytes_along(ledger: Ledger) -> None:
    await admitted(ledger)
    term = await ledger.enlist()
    claim = await ledger.claim(term, LIMITS, "mask")
    await ledger.filter(term, [g.group_id for g in claim.groups], "all alike")
    assert (await ledger.queues()).bytes == (WINDOW - BATCH) * ONE
    await ledger.close("cancelled")
    assert (await ledger.queues()).bytes == 0
