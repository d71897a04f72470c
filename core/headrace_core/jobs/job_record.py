"""All stores of one job on one Redis connection, for its workers and its controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis

from ..clock import SYSTEM_CLOCK, Clock
from ..config.hyperparameters import Hyperparameters
from ..ledger.ledger import Ledger
from ..ledger.worker_drains import WorkerDrains
from .job_store import JobStore
from .recovery_counters import RecoveryCounters
from .settings_log import SettingsLog


@dataclass(frozen=True)
class JobRecord:
    """One job's stores. The owner closes the record; no store of it works afterwards."""

    id: str
    redis: Redis
    ledger: Ledger
    drains: WorkerDrains
    store: JobStore
    """The job's status, events, measurements and heartbeats."""
    recoveries: RecoveryCounters

    @classmethod
    def on(
        cls,
        redis: Redis,
        job_id: str,
        clock: Clock = SYSTEM_CLOCK,
        ledger_clock: Callable[[], float] | None = None,
    ) -> Self:
        """The job's stores on one connection. `ledger_clock` gives Unix seconds for leases; None: Redis' own clock."""
        return cls(
            id=job_id,
            redis=redis,
            ledger=Ledger(redis, job_id, ledger_clock),
            drains=WorkerDrains(redis, job_id, clock),
            store=JobStore(redis),
            recoveries=RecoveryCounters(redis, job_id),
        )

    def live_settings(self, settings: Hyperparameters) -> SettingsLog:
        """The job's settings as they change: `settings`, overruled by the recorded changes."""
        return SettingsLog(self.redis, self.id, settings)

    async def close(self) -> None:
        """Close the Redis connection."""
        await self.redis.aclose()
