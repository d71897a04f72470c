"""Makes the group of each lease, and commits it or fails it with a reason."""

from __future__ import annotations

from collections import Counter

from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.records import Lease, TransitionOutcome

from .engines.engine import RequestRefused
from .group_builder import GroupBuilder
from .lease_pool import LeasePool
from .monitored_reward import MonitoredReward
from .reward_scoring import RewardFailed
from .worker_reporter import WorkerReporter


class LeasedGroups:
    """The groups of one started worker. `builder` makes them; `leases` holds the leases."""

    def __init__(
        self,
        job: JobRecord,
        live: SettingsLog,
        builder: GroupBuilder,
        leases: LeasePool,
        reporter: WorkerReporter,
        watched: MonitoredReward,
    ) -> None:
        self._ledger, self._live, self._builder, self._leases = job.ledger, live, builder, leases
        self._reporter, self._watched = reporter, watched
        self.tokens = self.groups = 0
        """Tokens and groups committed since the start."""
        self.errors = Counter[str]()
        """Groups that failed, and reference answers at unstable boundaries, by code."""

    async def make(self, lease: Lease) -> None:
        """Commit or fail the group of one lease. Raises any other error: the engine or Redis is gone."""
        try:
            await self._live.refresh()
            group = await self._builder.make(lease, self._live.at(lease.version).group_size)
            await self._note_boundaries()
            if await self._ledger.commit(lease, group) is TransitionOutcome.QUEUED:
                self._leases.served()
                self.groups += 1
                self.tokens += group.sampled_tokens
            await self._reporter.failures(self._watched)
        except RewardFailed as error:
            await self._reporter.failures(self._watched)
            await self._ledger.fail(lease, TransitionOutcome.REWARD_FAILED, str(error))
        except RequestRefused as error:
            self._leases.refused()
            row, before = self._builder.prompt(lease), self.errors[error.code]
            await self._reporter.refused_row(lease.group_id, row, error, before)
            self.errors[error.code] += 1
            await self._ledger.fail(lease, TransitionOutcome.GENERATION_FAILED, str(error))

    async def _note_boundaries(self) -> None:
        """Count the reference answers placed where the tokenizer would not split the text; report the first."""
        first = not self.errors["unstable_boundary"]
        self.errors["unstable_boundary"] = self._builder.unstable_boundaries
        if first and self.errors["unstable_boundary"]:
            await self._reporter.unstable_boundary()
