"""Rows that no engine can serve end a job once their share is passed, and the error names some of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace_controller.failure_limits import TooManyGenerationFailures, check_generation
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.counts import STATES, LedgerCounts
from headrace_core.types.events import IdleStep, RowRefused
from headrace_lab.services.jobs import stored_job

SETTINGS = Hyperparameters(batch_size=8, group_size=2, n_steps=1, max_generation_failures=0.25)
EMPTY = LedgerCounts(0, dict.fromkeys(STATES, 0), 0, 0, 0, 0, 0)


async def check(jobs: JobStore, failed: int, good: int, **settings: Any) -> None:
    states = EMPTY.states | {"generation_failed": failed, "trained": good - good // 2, "filtered": good // 2}
    account = replace(EMPTY, admitted=failed + good, states=states)
    await check_generation(jobs, "ftjob-1", account, SETTINGS.model_copy(update=settings))


async def test_a_share_of_groups_is_allowed(jobs: JobStore) -> None:
    await jobs.create(stored_job())
    await check(jobs, 4, 12)
    await check(jobs, 15, 0)  # two batches are not judged
    await check(jobs, 9, 0, batch_size=1)  # nor are fewer than ten groups
    with pytest.raises(
        TooManyGenerationFailures,
        match=r"^5 of 16 groups could not be generated, more than max_generation_failures=0.25 ",
    ):
        await check(jobs, 5, 11)
    with pytest.raises(TooManyGenerationFailures, match="10 of 10"):
        await check(jobs, 10, 0, batch_size=1)


async def test_the_error_names_the_first_rows(jobs: JobStore) -> None:
    await jobs.create(stored_job())
    await jobs.emit_event("ftjob-1", "of something else", level="warn", data=IdleStep(1, "equal"))
    for line in (7, 3, 9, 11):
        data = RowRefused(line, line - 1, line, "of no use")
        await jobs.emit_event("ftjob-1", f"the row of line {line} cannot be generated", level="warn", data=data)
    with pytest.raises(TooManyGenerationFailures) as caught:
        await check(jobs, 16, 0)
    assert [row.line for row in caught.value.data.rows] == [7, 3, 9]
    assert str(caught.value).endswith("\n\nthe row of line 9 cannot be generated")
    assert (caught.value.code, caught.value.param) == ("too_many_generation_failures", "training_file")
