"""Keeps an engine's weights the newest that the ledger names.

    newest version ──► its folder, once it is there ──► engine.update ─┬─► applied
                          ▲ waits while the version is held            └─► too slow, or damaged: given up, told, and the
                                                                           newest is tried again, `ATTEMPTS` in a row

Invariants: while somebody holds the engine's version, nothing is applied to it, and what is being applied when somebody
asks to hold it is applied first; after an update that was given up, the engine goes on with the version it has, and
says which that is; leases are given to those with the newest version alone, so a worker that cannot follow, or is held,
takes no work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.errors import TimedOut, WeightsDamaged
from headrace_core.ledger.ledger import Ledger
from headrace_core.storage.weight_store import WeightStore

from .engines.engine import Engine
from .worker_reporter import WorkerReporter

ATTEMPTS = 3
LOOK_SECONDS, AGAIN_SECONDS = 0.1, 1.0


class SyncResult(StrEnum):
    """How an attempt to catch up ended."""

    CURRENT = "current"
    APPLIED = "applied"
    GIVEN_UP = "given_up"


class WeightSync:
    """Of one engine. `start_timeout`: seconds for which weights that the ledger names may be lacking."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        weights: WeightStore,
        reporter: WorkerReporter,
        start_timeout: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engine, self._ledger, self._weights = engine, ledger, weights
        self._reporter, self._clock = reporter, clock
        self._start_timeout = start_timeout
        self._given_up = 0
        self._holders = 0
        self._applying = False
        self._changed = asyncio.Event()
        """Set for a moment whenever a hold or an update has ended."""

    @asynccontextmanager
    async def held(self, version: int, limit: float) -> AsyncIterator[int]:
        """The engine keeps the version that it is given, `version` or newer, until the last who holds it lets go.

        The worker takes no new work once there is a newer one. Raises `TimedOut` where `version` is not there, or an
        update does not end, within `limit` seconds.
        """
        try:
            async with asyncio.timeout(limit):
                while self._applying or self._engine.version < version:
                    await self._changed.wait()
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

    async def catch_up(self) -> SyncResult:
        """Apply the newest policy version, unless the engine has it. Raises the fault of the last of `ATTEMPTS`."""
        while True:
            version, path = await self._newest()
            if path is None or version <= self._engine.version:
                return SyncResult.CURRENT
            if not self._holders:
                break
            await self._changed.wait()  # as long as an evaluation takes, whose requests the engine ends or fails
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
        except (TimedOut, WeightsDamaged) as error:  # damaged: maybe a newer one took its place while it was read
            self._given_up += 1
            if self._given_up == ATTEMPTS:
                raise
            await self._reporter.update_given_up(version, self._engine.version, self._clock.monotonic() - began, error)
            await asyncio.sleep(AGAIN_SECONDS)
            return SyncResult.GIVEN_UP
        self._given_up = 0
        await self._reporter.update(report)
        return SyncResult.APPLIED

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def _newest(self) -> tuple[int, Path | None]:
        """The newest version and its folder (None: the base model's).

        The folder may be gone: replaced by a newer version, or lost with the machine's memory; then the learner, which
        starts beside this worker, publishes it again. Raises `WeightsDamaged` where it does not within the start limit.
        """
        deadline = self._clock.monotonic() + self._start_timeout
        while True:
            version, name = await self._ledger.newest()
            if name is None or version <= self._engine.version:
                return version, None
            try:
                return version, self._weights.open(name)
            except WeightsDamaged:
                if self._clock.monotonic() > deadline:
                    raise
            await asyncio.sleep(LOOK_SECONDS)
