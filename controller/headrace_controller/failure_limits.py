"""When failures end a job: rewards that fail, and rows of which no completion can be generated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from msgspec import UNSET

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import HeadraceError
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.counts import QUEUED_ONCE, LedgerCounts
from headrace_core.types.events import RewardFailure, RewardsFailed, RowRefused, RowsRefused, decoded
from headrace_core.types.job import Event
from headrace_core.types.metrics import RewardMetrics

SHOWN_SAMPLES = 3
SHOWN_ROWS = 3
MIN_GROUPS = 10
"""The share of failed groups is checked from this many groups on: of fewer, an outage that cost a few groups their last
lease would end the job."""
REPORT_SECONDS = 6
"""How long to wait for the workers' counts of the failures: workers report every few seconds."""


class TooManyRewardFailures(HeadraceError):
    """More rewards failed than `max_reward_failures` allows. `data`: the event data of the failure."""

    code = "too_many_reward_failures"

    def __init__(self, message: str, data: RewardsFailed) -> None:
        super().__init__(message, param="grader")
        self.data = data


async def check_rewards(jobs: JobStore, job_id: str, account: LedgerCounts, settings: Hyperparameters) -> None:
    """Raises `TooManyRewardFailures` if the share of failed groups, or of failed completions, is above
    `max_reward_failures`."""
    measurements = await jobs.rewards(job_id)
    too_many = _failed_groups_share(account, settings) or _excluded_completions_share(measurements, settings)
    if too_many is None:
        return
    kinds = await _kinds(jobs, job_id, account.states["reward_failed"])
    samples = _sample_failures([event for _, event in await jobs.events(job_id)])
    by_kind = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    shown = "".join(f"\n\ngroup {s.group}, {s.kind}: {s.error}\n{s.traceback}" for s in samples)
    raise TooManyRewardFailures(
        f"the reward failed for {too_many}, more than max_reward_failures={settings.max_reward_failures:g} allows; "
        f"completions by kind: {by_kind}{shown}",
        RewardsFailed(kinds, samples),
    )


async def _kinds(jobs: JobStore, job_id: str, groups: int) -> dict[str, int]:
    """Failed completions by kind of failure, most frequent first.

    Waits up to `REPORT_SECONDS` until there is at least one for each failed group: the ledger counts a group before its
    worker reports why it failed, and a worker that died never reports.
    """
    for _ in range(REPORT_SECONDS):
        kinds = sum((Counter(c.failures) for c in await jobs.rewards(job_id)), Counter[str]())
        if kinds.total() >= groups:
            break
        await asyncio.sleep(1.0)
    return dict(kinds.most_common())


def _failed_groups_share(account: LedgerCounts, settings: Hyperparameters) -> str | None:
    """The share of groups whose reward failed, in words, where it is too high; else None."""
    failed = account.states["reward_failed"]
    ended = failed + sum(account.states[state] for state in QUEUED_ONCE)
    enough = 2 * settings.batch_size  # so that a single early failure does not end the job
    too_many = ended >= enough and failed > settings.max_reward_failures * ended
    return f"{failed} of {ended} groups" if too_many else None


def _excluded_completions_share(measurements: Sequence[RewardMetrics], settings: Hyperparameters) -> str | None:
    """The share of completions that were left out of their groups, in words, where it is too high; else None."""
    left_out, scored = sum(m.left_out for m in measurements), sum(m.completions for m in measurements)
    enough = 2 * settings.batch_size * settings.group_size
    too_many = scored >= enough and left_out > settings.max_reward_failures * scored
    return f"{left_out} of {scored} completions, which were left out of their groups" if too_many else None


def _sample_failures(events: Sequence[Event]) -> list[RewardFailure]:
    """Up to `SHOWN_SAMPLES` of the failures reported so far: one of each kind first, then others."""
    failures = [decoded(event.data, RewardFailure) for event in events]
    of_groups = [failure for failure in failures if failure is not None and failure.group is not UNSET]
    first = {failure.kind: failure for failure in reversed(of_groups)}
    others = [failure for failure in of_groups if failure not in first.values()]
    return [*reversed(first.values()), *others][:SHOWN_SAMPLES]


class TooManyGenerationFailures(HeadraceError):
    """More groups could not be generated than `max_generation_failures` allows. `data`: the event data of the
    failure."""

    code = "too_many_generation_failures"

    def __init__(self, message: str, data: RowsRefused) -> None:
        super().__init__(message, param="training_file")
        self.data = data


async def check_generation(jobs: JobStore, job_id: str, account: LedgerCounts, settings: Hyperparameters) -> None:
    """Raises `TooManyGenerationFailures` if the share of failed groups is above `max_generation_failures`."""
    failed = account.states["generation_failed"]
    ended = failed + sum(account.states[state] for state in QUEUED_ONCE)
    if ended < max(2 * settings.batch_size, MIN_GROUPS) or failed <= settings.max_generation_failures * ended:
        return
    events = [(event.message, decoded(event.data, RowRefused)) for _, event in await jobs.events(job_id)]
    refused = [(message, row) for message, row in events if row is not None][:SHOWN_ROWS]
    shown = "".join(f"\n\n{message}" for message, _ in refused)
    raise TooManyGenerationFailures(
        f"{failed} of {ended} groups could not be generated, more than "
        f"max_generation_failures={settings.max_generation_failures:g} allows: mend or leave out their rows{shown}",
        RowsRefused([row for _, row in refused]),
    )
