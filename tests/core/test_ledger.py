"""The ledger on a real Redis, transition by transition."""

from __future__ import annotations

import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.ledger import BoundBroken, Ledger, Outcome, Refusal, Step
from headrace_core.staleness import Limits
from headrace_core.trajectory import Group, sampled_completion

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
        assert await ledger.commit(lease, a_group(lease.group_id)) is Outcome.QUEUED
    term = await ledger.enlist()
    claim = await ledger.claim(term, LIMITS, "mask")
    assert [g.group_id for g in claim.groups] == [0, 1]  # admission order, not completion order
    step = Step(version=0, groups=(0, 1), ages={0: 12}, masked_tokens=0)
    assert await ledger.settle(term, step, "v1") is Outcome.SETTLED
    assert await ledger.newest() == (1, "v1")
    account = await ledger.account()
    assert account.balanced
    assert account.states["trained"] == 2
    assert (await ledger.admit("rollout-0", 0, 10, 60)).refusal is Refusal.BEHIND
    assert [t.state for t in await ledger.history(0)] == ["leased", "queued", "claimed", "trained"]
    assert [s.groups for s in await ledger.steps()] == [(0, 1)]
    assert [g.group_id for g in await ledger.replay(step)] == [0, 1]


async def test_a_step_beyond_the_bound_is_refused(ledger: Ledger) -> None:
    term = await ledger.enlist()
    with pytest.raises(BoundBroken):
        await ledger.settle(term, Step(0, (), {2: 1}, 0), "v1")
