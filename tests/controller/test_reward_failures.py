"""Failing rewards end a job once their share is passed, and the error shows kinds, counts and samples."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace_controller import failure_limits
from headrace_controller.failure_limits import TooManyRewardFailures, check_rewards
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.counts import STATES, LedgerCounts
from headrace_core.types.events import RewardFailure
from headrace_core.types.metrics import RewardMetrics
from headrace_lab.services.jobs import stored_job

SETTINGS = Hyperparameters(batch_size=4, group_size=2, max_reward_failures=0.25, n_steps=1)
EMPTY = LedgerCounts(0, dict.fromkeys(STATES, 0), 0, 0, 0, 0, 0)

Check = Callable[..., Awaitable[None]]


def account(failed: int, good: int) -> LedgerCounts:
    states = EMPTY.states | {"reward_failed": failed, "trained": good - good // 2, "queued": good // 2}
    return replace(EMPTY, admitted=failed + good, states=states)


@pytest.fixture
async def check(jobs: JobStore) -> Check:
    await jobs.create(stored_job())

    async def check(failed: int, good: int, **settings: Any) -> None:
        await check_rewards(jobs, "ftjob-1", account(failed, good), SETTINGS.model_copy(update=settings))

    return check


async def count(jobs: JobStore, worker: str = "rollout-0", **fields: Any) -> None:
    await jobs.record_reward("ftjob-1", RewardMetrics(worker=worker, started=1.0, time=2.0, **fields))


async def tell(jobs: JobStore, group: int, kind: str) -> None:
    data = RewardFailure(kind, f"it was {kind}", f"Traceback of group {group}", group)
    await jobs.emit_event("ftjob-1", "reward failed", level="warn", data=data)


async def test_a_share_of_groups_is_allowed(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_limits, "REPORT_SECONDS", 1)  # nobody has anything to report
    await check(2, 6)
    await check(7, 0)  # two batches are not judged
    with pytest.raises(
        TooManyRewardFailures, match=r"^the reward failed for 3 of 8 groups, more than max_reward_failures=0.25 "
    ):
        await check(3, 5)


@pytest.mark.parametrize("state", ["filtered", "dropped_stale"])
async def test_groups_that_were_scored_and_not_trained_count_as_good(jobs: JobStore, state: str) -> None:
    """A policy that has learned its task has most of its groups filtered: failures are no larger a share for that."""
    await jobs.create(stored_job())
    states = EMPTY.states | {"reward_failed": 10, "trained": 10, state: 80}
    await check_rewards(jobs, "ftjob-1", replace(EMPTY, admitted=100, states=states), SETTINGS)


async def test_the_error_shows_kinds_and_one_sample_of_each_first(jobs: JobStore, check: Check) -> None:
    await count(jobs, failures={"exception": 3, "timeout": 1})
    await count(jobs, "rollout-1", failures={"timeout": 5, "crashed": 1})
    for group, kind in ((0, "exception"), (1, "exception"), (2, "timeout"), (3, "exception"), (4, "timeout")):
        await tell(jobs, group, kind)
    await jobs.emit_event("ftjob-1", "of an evaluation", data=RewardFailure("crashed", "it crashed", "of no group"))
    with pytest.raises(TooManyRewardFailures) as caught:
        await check(8, 0)
    error = caught.value
    assert error.data.failures == {"timeout": 6, "exception": 3, "crashed": 1}
    assert [sample.group for sample in error.data.samples] == [0, 2, 1]
    assert "completions by kind: timeout 6, exception 3, crashed 1\n\ngroup 0, exception: it was exception\n" in str(
        error
    )
    assert str(error).endswith("group 1, exception: it was exception\nTraceback of group 1")
    assert error.code == "too_many_reward_failures"
    assert error.param == "grader"


async def test_completions_left_out_are_a_share_too(jobs: JobStore, check: Check) -> None:
    await count(jobs, completions=15, left_out=15, failures={"timeout": 15})
    await check(0, 8)  # two batches of completions are not judged
    await count(jobs, completions=100, left_out=25, failures={"timeout": 25})
    await check(0, 8)
    await count(jobs, "rollout-1", completions=20, left_out=6, failures={"timeout": 6})
    with pytest.raises(
        TooManyRewardFailures, match=r"31 of 120 completions, which were left out of their groups.*timeout 31"
    ):
        await check(0, 8)


async def test_it_waits_for_what_workers_have_yet_to_report(jobs: JobStore, check: Check) -> None:
    checking = asyncio.ensure_future(check(8, 0))
    await count(jobs, failures={"crashed": 4})
    await asyncio.wait([checking], timeout=0.1)
    await count(jobs, "rollout-1", failures={"crashed": 4})
    with pytest.raises(TooManyRewardFailures, match="crashed 8"):
        await checking
