"""A reward whose user code runs in several sandboxed processes. The service never imports the code.

    score(group) ─► chunks ─► an idle supervisor, first come first served ─► its host process
                    └ one chunk per worker, or the whole group if the function takes groups

Scoring overlaps with generation: waiting for a host blocks nothing else.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace_core.config.reward_permissions import RewardPermissions, SandboxLevel
from headrace_core.errors import InvalidState, TimedOut
from headrace_core.protocols.grader_check import Failure, Outcome

from ..protocol import Sample, score_wanted
from ..user_code.argument_binding import Form
from . import frames
from .host_supervisor import HostSupervisor
from .kernel.resource_limits import ResourceLimits
from .level_probe import probe_level

_CLOSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Code:
    """The function to run, and where it is."""

    path: str
    """Absolute path of the file; with `source`, a name for it."""
    function: str
    form: Form
    timeout: float
    """Seconds for one completion, or one group."""
    param: str
    """The grader's field that an error of the code refers to."""
    source: str | None = None
    """The source text; `None` for code in a file or a module."""
    beside: str | None = None
    """Absolute path of an installed module that `source` imports."""
    module: str | None = None
    """Name of the module, for a function of an installed package; `path` is in the package's folder."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the function that are the same in every call."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The stored file and the files that it imports, by absolute path: imported instead of the files at these paths."""


class HostedReward:
    def __init__(
        self,
        code: Code,
        workers: int,
        rules: RewardPermissions,
        limits: ResourceLimits,
        level: SandboxLevel | None = None,
    ) -> None:
        """`level`: run at this sandbox level without probing the machine; for tests."""
        self._code = code
        self._workers = min(workers, rules.max_workers)
        self._rules = rules
        self._limits = limits
        self._level = level
        self._supervisors: list[HostSupervisor] = []
        self._idle: asyncio.Queue[HostSupervisor] = asyncio.Queue()
        self._ready: frames.HostReady | None = None
        self._closed = False

    async def start(self) -> None:
        """Start every process, and load the code in each.

        Raises `InvalidRequest`, with the last lines of the traceback, if the code does not load; `Unavailable` if the
        machine does not support the sandbox level that the operator requires.
        """
        setup = self._setup(await self._sandbox_level())
        self._supervisors = [HostSupervisor(setup, self._code.param) for _ in range(self._workers)]
        try:
            ready = [await supervisor.start() for supervisor in self._supervisors[:1]]
            await asyncio.gather(*(supervisor.start() for supervisor in self._supervisors[1:]))
        except BaseException:
            self._stop()
            for supervisor in self._supervisors:
                await supervisor.reap()
            raise
        self._ready = ready[0]
        for supervisor in self._supervisors:
            self._idle.put_nowait(supervisor)

    async def _sandbox_level(self) -> SandboxLevel:
        if self._level is not None:
            return self._level
        machine = await probe_level()
        machine.require(self._rules.sandbox)
        return machine.level

    def _setup(self, level: SandboxLevel) -> frames.Setup:
        code = self._code
        return frames.Setup(
            *(code.path, code.function, code.form, code.timeout, self._limits, level, list(self._rules.hidden)),
            home=os.path.expanduser("~"),
            source=code.source,
            beside=code.beside,
            module=code.module,
            options=code.options,
            files=code.files,
        )

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, in order; see `Reward`."""
        if self._closed:
            return [Failure("unavailable", "the reward was closed")] * len(samples)
        if self._ready is None:
            raise InvalidState("the reward was not started")
        if self._ready.whole_group:
            return await self._score_units([samples] if samples else [])
        return await score_wanted(samples, lambda wanted: self._score_units([[sample] for sample in wanted]))

    async def _score_units(self, units: list[Sequence[Sample]]) -> list[Outcome]:
        """The outcomes of all units, in order; the units are divided among all processes."""
        chunks = _chunks(units, len(self._supervisors))
        scored = await asyncio.gather(*map(self._score, chunks))
        return [outcome for chunk in scored for unit in chunk for outcome in unit]

    async def close(self) -> None:
        """Kill every process. Raises `TimedOut` if one does not end. Idempotent."""
        if self._ready is None or self._closed:
            return
        self._stop()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                idle = [await self._idle.get() for _ in self._supervisors]
        except TimeoutError:
            raise TimedOut(f"reward processes were still busy {_CLOSE_SECONDS:g} s after they were killed") from None
        for supervisor in idle:
            await supervisor.reap()

    async def _score(self, units: list[Sequence[Sample]]) -> list[list[Outcome]]:
        supervisor = await self._idle.get()
        try:
            return await supervisor.score(units)
        finally:
            self._idle.put_nowait(supervisor)

    def _stop(self) -> None:
        self._closed = True
        for supervisor in self._supervisors:
            supervisor.stop()


def _chunks(units: list[Sequence[Sample]], count: int) -> list[list[Sequence[Sample]]]:
    """Split the units into at most `count` consecutive chunks of about equal size."""
    size = max(1, math.ceil(len(units) / count))
    return [units[start : start + size] for start in range(0, len(units), size)]
