"""What the ledger keeps of groups that ended and of steps is bounded; what a recovery needs is all there."""

from __future__ import annotations

import re

import pytest
from redis.asyncio import Redis

from headrace_core.errors import NotFound
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Lease, Step, TransitionOutcome
from headrace_core.redis_access import scripts
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.staleness import Limits

from .test_ledger import a_group, committed

JOB = "ftjob-long"
KEYS = JobKeys(JOB)
BATCH = 10
GROUPS, STEPS = 30, 4
"""Kept here."""


@pytest.fixture
async def ledger(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The real scripts, but for how many they keep."""
    limits = re.compile(r"(local FAILED_KEPT, ENDED_KEPT, STEPS_KEPT) = 1000, 5000, 5000\n")
    source = scripts.script_source

    def few(name: str) -> str:
        text, found = limits.subn(rf"\1 = 1000, {GROUPS}, {STEPS}\n", source(name))
        assert found == 1
        return text

    monkeypatch.setattr(scripts, "script_source", few)
    ledger = Ledger(redis, JOB)
    await ledger.open(Limits(BATCH, 0, 1000))
    return ledger


async def kept(redis: Redis) -> list[bytes]:
    return [key async for key in redis.scan_iter(KEYS.group("*"), count=5000)]


async def trained(ledger: Ledger, steps: int) -> None:
    """So many steps, of 6 tokens a group."""
    limits, term = Limits(BATCH, 0, 1000), await ledger.enlist()
    for version in range(steps):
        await committed(ledger, BATCH)
        groups = tuple(g.group_id for g in (await ledger.claim(term, limits, "mask")).groups)
        assert len(groups) == BATCH
        assert (
            await ledger.settle(term, Step(version, groups, {0: 6 * BATCH}, 0), f"v{version + 1}")
            is TransitionOutcome.SETTLED
        )


async def test_of_groups_that_two_checkpoints_hold_the_newest_are_kept(ledger: Ledger, redis: Redis) -> None:
    await trained(ledger, 8)
    assert len(await kept(redis)) == 8 * BATCH, "before there is a checkpoint"
    assert await ledger.forget_before(6) == 6 * BATCH
    assert len(await kept(redis)) == GROUPS + 2 * BATCH
    first = 6 * BATCH - GROUPS
    assert [t.state for t in await ledger.history(first)] == ["leased", "queued", "claimed", "trained"]
    with pytest.raises(NotFound, match=f"the history of group {first - 1} is forgotten"):
        await ledger.history(first - 1)
    with pytest.raises(NotFound, match="was ever admitted"):
        await ledger.history(8 * BATCH)
    for step in await ledger.steps(6):  # whoever goes back to the older checkpoint has its groups
        assert [g.group_id for g in await ledger.groups(step.groups)] == list(step.groups)
    account = await ledger.counts()
    assert (account.balanced, account.admitted, account.states["trained"]) == (True, 8 * BATCH, 8 * BATCH)


async def test_a_late_copy_of_a_call_for_a_forgotten_group_changes_nothing(ledger: Ledger, redis: Redis) -> None:
    await trained(ledger, 6)
    await ledger.forget_before(6)
    before, account = sorted(await kept(redis)), await ledger.counts()
    late = Lease(0, "rollout-0#1", 1, 0)
    assert await ledger.commit(late, a_group(0)) is TransitionOutcome.FENCED
    assert await ledger.fail(late, TransitionOutcome.REWARD_FAILED, "late") is TransitionOutcome.FENCED
    assert await ledger.release([late]) == 0
    assert await ledger.renew([late], 60) == {0}
    assert await ledger.forget_before(3) == 0
    assert sorted(await kept(redis)) == before
    assert (await ledger.counts()).states == account.states


async def test_groups_that_are_given_up_are_bounded_without_any_checkpoint(ledger: Ledger, redis: Redis) -> None:
    limits, term = Limits(BATCH, 0, 1000), await ledger.enlist()
    for _ in range(5):
        await committed(ledger, BATCH)
        groups = [g.group_id for g in (await ledger.claim(term, limits, "mask")).groups]
        for _ in range(2):  # sent again
            assert await ledger.filter(term, groups, "equal rewards") is TransitionOutcome.FILTERED
    assert len(await kept(redis)) == GROUPS
    assert (await ledger.counts()).states["filtered"] == 5 * BATCH


async def test_of_covered_steps_the_newest_records_are_kept_and_the_tokens_of_all(ledger: Ledger) -> None:
    await trained(ledger, 9)
    tokens = 9 * 6 * BATCH
    assert await ledger.trained_tokens() == tokens
    for covered in (3, 7, 7, 5):  # a learner that died says it again
        await ledger.forget_before(covered)
        assert await ledger.trained_tokens() == tokens
    assert [step.version for step in await ledger.steps()] == list(range(7 - STEPS, 9))


async def test_a_group_takes_some_hundred_bytes(ledger: Ledger, redis: Redis) -> None:
    """Some 660, times the 6,000 that are kept: 4 MB a job."""
    await trained(ledger, 2)
    sizes = [await run(redis.memory_usage(key, samples=0)) for key in await kept(redis)]
    assert max(sizes) < 1000
