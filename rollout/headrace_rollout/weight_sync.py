"""Keeps an engine's weights at the newest policy version in the ledger.

    newest version ──► its folder, once it exists ──► engine.update ─┬─► applied
                          ▲ waits while the version is held          └─► too slow, or damaged: abandoned and reported;
                                                                         the newest is tried again, `ATTEMPTS` in a row

Invariants: while an evaluation holds the engine's version, no update begins; an update in progress ends before a hold
begins. After an abandoned update the engine continues with the version it has, and reports that version. The ledger
gives leases only to workers with the newest version, so a worker that cannot update, or whose version is held, gets no
work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.concurrency import while_moving
from headrace_core.errors import TimedOut, WeightsDamaged
from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import LEARNER_NAME
from headrace_core.storage.weight_store import WeightStore

from .engines.engine import Engine
from .worker_reporter import WorkerReporter

ATTEMPTS = 3
POLL_SECONDS, RETRY_SECONDS = 0.1, 1.0


class SyncResult(StrEnum):
    """The result of `WeightSync.catch_up`."""

    CURRENT = "current"
    APPLIED = "applied"
    GIVEN_UP = "given_up"


class WeightSync:
    """The updates of one engine. `start_timeout`: seconds for which the weights of the newest version may be missing
    while the learner computes nothing."""

    def __init__(
        self,
        engine: Engine,
        job: JobRecord,
        weights: WeightStore,
        reporter: WorkerReporter,
        start_timeout: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engine, self._job, self._weights = engine, job, weights
        self._reporter, self._clock = reporter, clock
        self._start_timeout = start_timeout
        self._given_up = 0
        self._holders = 0
        self._applying = False
        self._changed = asyncio.Event()
        """Wakes all waiters whenever a hold or an update has ended (set, and cleared at once)."""

    @asynccontextmanager
    async def held(self, version: int, limit: float) -> AsyncIterator[int]:
        """Hold the engine at its present version, which is at least `version`; yields that version.

        Several callers may hold it; updates resume when the last one leaves. Raises `TimedOut` after `limit` seconds in
        which the engine has neither reached `version` nor ended an update nor, if its requests drain, sampled a token.
        """
        try:
            while not self._holdable(version):  # again, because an update may begin when the wait has just ended
                await while_moving(self._until(version), limit, self._sampled_tokens, self._engine.sampled_tokens)
        except TimeoutError as error:
            raise TimedOut(
                f"policy version {version} was waited for {limit:.0f} s; the engine has {self._engine.version}"
            ) from error
        self._holders += 1
        try:
            yield self._engine.version
        finally:
            self._holders -= 1
            self._wake()

    def _holdable(self, version: int) -> bool:
        return not self._applying and self._engine.version >= version

    async def _until(self, version: int) -> None:
        while not self._holdable(version):
            await self._changed.wait()

    async def _sampled_tokens(self) -> int:
        return self._engine.sampled_tokens

    async def catch_up(self) -> SyncResult:
        """Apply the newest policy version, unless the engine has it. Raises the error of the last of `ATTEMPTS`."""
        while True:
            version, path = await self._newest()
            if path is None or version <= self._engine.version:
                return SyncResult.CURRENT
            if not self._holders:
                break
            await self._changed.wait()  # it ends with the evaluation, because the engine ends or fails its requests
        self._applying = True
        try:
            return await self._apply(version, path)
        finally:
            self._applying = False
            self._wake()

    async def _apply(self, version: int, path: Path) -> SyncResult:
        began = self._clock.monotonic()
        try:
            report = await self._engine.update(version, path)
        except (TimedOut, WeightsDamaged) as error:  # damaged: a newer version may have replaced it during the read
            self._given_up += 1
            if self._given_up == ATTEMPTS:
                raise
            await self._reporter.update_given_up(version, self._engine.version, self._clock.monotonic() - began, error)
            await asyncio.sleep(RETRY_SECONDS)
            return SyncResult.GIVEN_UP
        self._given_up = 0
        await self._reporter.update(report)
        return SyncResult.APPLIED

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def _newest(self) -> tuple[int, Path | None]:
        """(newest version, its folder; None: the engine needs no new weights).

        The folder may be missing: a newer version replaced it, or the machine's memory was lost, when the learner,
        which starts together with this worker, publishes it again, perhaps after it has replayed many steps. Raises
        `WeightsDamaged` if it is still missing `start_timeout` after the learner computed its last token.
        """
        deadline, computed = self._clock.monotonic() + self._start_timeout, 0
        while True:
            version, name = await self._job.ledger.newest()
            if name is None or version <= self._engine.version:
                return version, None
            try:
                return version, self._weights.open(name)
            except WeightsDamaged:
                if self._clock.monotonic() > deadline:
                    before, computed = computed, await self._learner_tokens()
                    if computed == before:
                        raise
                    deadline = self._clock.monotonic() + self._start_timeout
            await asyncio.sleep(POLL_SECONDS)

    async def _learner_tokens(self) -> int:
        beats = await self._job.store.workers(self._job.id)
        return next((beat.computed_tokens for beat in beats if beat.worker == LEARNER_NAME), 0)
