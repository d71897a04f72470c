"""Keeps one host process alive, and finds the unit that broke it.

    units ─► call ─► results … dies ─► the unit it worked on failed; the others go to a fresh process

A function that takes its units in order was at the first one without a result. An async function runs them at once, so
after a death the rest are repeated one by one. Every death settles a unit or begins that repetition, so a call always
ends; a process that does not start any more, tried `_START_ATTEMPTS` times, settles all that are left.
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
_RESTART_SECONDS, _LONGEST_RESTART_SECONDS = 0.2, 1.0
"""Pause before the second attempt to start, and the longest before any."""


class HostSupervisor:
    """One seat at which units are scored; one call at a time."""

    def __init__(self, setup: frames.Setup, param: str) -> None:
        """`param` is the field of the grader that is blamed for code that does not load."""
        self._setup = setup
        self._param = param
        self._process: HostProcess | None = None
        self._stopped = False

    async def start(self) -> frames.HostReady:
        """The first process; raises `InvalidRequest` where the user's code does not load."""
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
                process = await self._running()
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
        """Kill the process; calls in flight end with `unavailable`, and so does every later one."""
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
        """Moves what is answered from `pending` to `outcomes`; returns how the process died, if it did."""
        try:
            async for result in process.call(batch):
                outcomes[result.index] = result.outcomes
                del pending[result.index]
        except HostDied as death:
            return death
        except BaseException:  # cancelled: its answers would be taken for those of the next call
            process.kill()
            raise
        return None

    async def _running(self) -> HostProcess:
        """The present process, or a fresh one; raises `Unavailable`."""
        if self._process is not None and self._process.alive and not self._stopped:
            return self._process
        last = ""
        for attempt in range(_START_ATTEMPTS):
            if attempt:
                await asyncio.sleep(delay_after(attempt, _RESTART_SECONDS, _LONGEST_RESTART_SECONDS))
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
