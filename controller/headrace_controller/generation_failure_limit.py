"""When rows that no engine can serve end a job, and what it says then: the first of them, with their lines."""

from __future__ import annotations

from typing import Any

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import HeadraceError
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import QUEUED_ONCE, LedgerCounts

SHOWN_ROWS = 3
LEAST_GROUPS = 10
"""Of fewer, a few that failed are no share: an outage may have cost a group its last lease."""


class TooManyGenerationFailures(HeadraceError):
    """More groups could not be generated than the job's settings allow. `data` is for an event: some of their rows."""

    code = "too_many_generation_failures"

    def __init__(self, message: str, data: dict[str, Any]) -> None:
        super().__init__(message, param="training_file")
        self.data = data


async def check_generation(jobs: JobStore, job_id: str, account: LedgerCounts, settings: Hyperparameters) -> None:
    """Raises `TooManyGenerationFailures` once a share of the groups above `max_generation_failures` has failed."""
    failed = account.states["generation_failed"]
    ended = failed + sum(account.states[state] for state in QUEUED_ONCE)
    if ended < max(2 * settings.batch_size, LEAST_GROUPS) or failed <= settings.max_generation_failures * ended:
        return
    told = [
        event
        for _, event in await jobs.events(job_id)
        if event.data is not None and {"row", "group"} <= event.data.keys()
    ]
    rows = [event.data for event in told[:SHOWN_ROWS]]
    shown = "".join(f"\n\n{event.message}" for event in told[:SHOWN_ROWS])
    raise TooManyGenerationFailures(
        f"{failed} of {ended} groups could not be generated, more than "
        f"max_generation_failures={settings.max_generation_failures:g} allows: mend or leave out their rows{shown}",
        {"rows": rows},
    )
