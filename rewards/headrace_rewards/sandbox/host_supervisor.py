"""Keeps one host process running, and finds the unit that made it die.

    units ─► call ─► results … process dies ─► the unit that it worked on fails; the others go to a new process

A plain function takes its units in order, so it was working on the first one without a result. An async function runs
them at the same time, so after a death the rest are repeated one by one. Each death decides one unit or begins that
repetition, so every call ends. If a new process does not start in `_START_ATTEMPTS` attempts, all remaining units fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from headrace_core.backoff import delay_after
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.protocols.grader_check import Failure, Outcome

from ..protocol import Sample
from . import frames
from .host_process import HostDied, HostLoadFailed, HostProcess

_START_ATTEMPTS = 3
_RESTART_SECONDS, _MAX_RESTART_SECONDS = 0.2, 1.0
"""Pause before the second attempt to start, and the longest pause before any attempt."""


class HostSupervisor:
    """One host process with its replacements; scores one call at a time."""

    def __init__(self, setup: frames.Setup, param: str) -> None:
        """`param`: the grader's field that an error of loading the code refers to."""
        self._setup = setup
        self._param = param
        self._process: HostProcess | None = None
        self._stopped = False

    async def start(self) -> frames.HostReady:
        """Start the first process. Raises `InvalidRequest` if the user's code does not load."""
        process = self._process = HostProcess(self._setup)
        try:
            await process.load()
        except HostLoadFailed as fault:
            raise InvalidRequest(_with(fault.message, fault.traceback), param=self._param) from None
        except HostDied as death:
            message = f"{self._setup.path} could not be imported: {death.message}"
            raise InvalidRequest(_with(message, death.tail), param=self._param) from None
        return process.ready

    async def score(self, units: Sequence[Sequence[Sample]]) -> list[list[Outcome]]:
        """The outcomes of each unit, in order."""
        outcomes: dict[int, list[Outcome]] = {}
        pending: dict[int, frames.Encoded] = {}
        for index, unit in enumerate(units):
            encoded = _encode(index, unit)
            if isinstance(encoded, Failure):
                outcomes[index] = [encoded] * len(unit)
            else:
                pending[index] = encoded
        one_by_one = False
        while pending:
            try:
                process = await self._live_process()
            except Unavailable as fault:
                outcomes |= _failed(pending, Failure("unavailable", fault.message))
                break
            batch = dict([next(iter(pending.items()))] if one_by_one else pending)
            death = await self._call(process, batch, pending, outcomes)
            suspects = {index: unit for index, unit in batch.items() if index in pending}
            if death is None or self._stopped:
                continue
            if process.ready.concurrent and len(suspects) > 1:
                one_by_one = True
                continue
            first = next(iter(suspects))
            outcomes |= _failed({first: pending.pop(first)}, Failure(death.kind, death.message, death.tail))
        return [outcomes[index] for index in range(len(units))]

    def stop(self) -> None:
        """Kill the process; calls in flight, and all later ones, return `unavailable`."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    async def reap(self) -> None:
        """Wait for the end of the process, after `stop`."""
        if self._process is not None:
            await self._process.reap()

    async def _call(
        self,
        process: HostProcess,
        batch: dict[int, frames.Encoded],
        pending: dict[int, frames.Encoded],
        outcomes: dict[int, list[Outcome]],
    ) -> HostDied | None:
        """Call the process, and move the units with a result from `pending` to `outcomes`. Returns the error if the
        process died."""
        try:
            async for result in process.call(batch):
                outcomes[result.index] = result.outcomes
                del pending[result.index]
        except HostDied as death:
            return death
        except BaseException:  # cancelled: its late answers would be taken for those of the next call
            process.kill()
            raise
        return None

    async def _live_process(self) -> HostProcess:
        """The present process if it is alive, else a new one. Raises `Unavailable`."""
        if self._process is not None and self._process.alive and not self._stopped:
            return self._process
        last = ""
        for attempt in range(_START_ATTEMPTS):
            if attempt:
                await asyncio.sleep(delay_after(attempt, _RESTART_SECONDS, _MAX_RESTART_SECONDS))
            if self._process is not None:
                self._process.kill()
                await self._process.reap()
            if self._stopped:
                raise Unavailable("the reward was closed")
            try:
                process = self._process = HostProcess(self._setup)
                await process.load()
            except (HostLoadFailed, HostDied, OSError) as fault:
                last = str(fault)
            else:
                return process
        raise Unavailable(f"the reward process did not start in {_START_ATTEMPTS} attempts: {last}")


def _encode(index: int, samples: Sequence[Sample]) -> frames.Encoded | Failure:
    seen = [replace(sample, measured=None) for sample in samples]
    try:
        return frames.Encoded(msgspec.Raw(frames.encode(frames.Unit(index, seen))), len(samples))
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:  # half a surrogate pair, say, or deep lists
        return Failure("bad_input", f"the row cannot be written as JSON: {fault}")


def _failed(units: dict[int, frames.Encoded], failure: Failure) -> dict[int, list[Outcome]]:
    return {index: [failure] * unit.samples for index, unit in units.items()}


def _with(message: str, details: str) -> str:
    return f"{message}\n{details}" if details else message
