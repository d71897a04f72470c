"""`function`: a user's Python function, `path/file.py:name`, run in `workers` processes of its own.

    score(group) ─► chunks ─► a free supervisor, first come first served ─► its host process
                    └ one chunk a worker, or the whole group where the function asks for it

The service never imports the user's file. Scoring overlaps with generation: waiting for a host blocks nothing else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.errors import InvalidState, TimedOut
from headrace_rewards import wire
from headrace_rewards.binding import Form
from headrace_rewards.isolation import Limits
from headrace_rewards.protocol import Failure, Outcome, Sample
from headrace_rewards.specs import GraderSpec
from headrace_rewards.supervisor import Supervisor

_CLOSE_SECONDS = 30.0


def _locate(reference: str) -> str:
    """`path/file.py:name` with the path made absolute; the file must exist."""
    path, colon, name = reference.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"'{reference}' is not of the form path/file.py:function")
    file = Path(path).absolute()
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    return f"{file}:{name}"


class FunctionSpec(GraderSpec):
    """The function's arguments are filled by name (see `binding`); what it may return is listed in `values`."""

    type: Literal["function"]
    function: Annotated[str, AfterValidator(_locate)]
    """`path/file.py:name`; a relative path is taken from the working folder of whoever reads the spec first."""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one completion, or for one group where the function takes groups."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the function side by side."""
    form: Form = "text"
    """What `prompt` and `completion` are: strings, or lists of messages."""


class FunctionReward:
    """See the module's picture. `limits` are the operator's, not the user's."""

    def __init__(self, spec: FunctionSpec, limits: Limits | None = None) -> None:
        path, _, name = spec.function.rpartition(":")
        setup = wire.Setup(path, name, spec.form, spec.timeout, limits or Limits())
        self._supervisors = [Supervisor(setup) for _ in range(spec.workers)]
        self._free: asyncio.Queue[Supervisor] = asyncio.Queue()
        self._ready: wire.Ready | None = None
        self._closed = False

    async def start(self) -> None:
        """Start every process and import the file in each; raises `InvalidRequest`, with the traceback's last lines."""
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
            self._free.put_nowait(supervisor)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see `Reward`."""
        if self._closed:
            return [Failure("unavailable", "the reward was closed")] * len(samples)
        if self._ready is None:
            raise InvalidState("the reward was not started")
        if self._ready.whole_group:
            chunks: list[list[Sequence[Sample]]] = [[samples]] if samples else []
        else:
            chunks = _chunks([[sample] for sample in samples], len(self._supervisors))
        scored = await asyncio.gather(*map(self._score, chunks))
        return [outcome for chunk in scored for unit in chunk for outcome in unit]

    async def close(self) -> None:
        """Kill every process; raises `TimedOut` where one does not end. Idempotent."""
        if self._ready is None or self._closed:
            return
        self._stop()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                idle = [await self._free.get() for _ in self._supervisors]
        except TimeoutError:
            raise TimedOut(f"reward processes were still busy {_CLOSE_SECONDS:g} s after they were killed") from None
        for supervisor in idle:
            await supervisor.reap()

    async def _score(self, units: list[Sequence[Sample]]) -> list[list[Outcome]]:
        supervisor = await self._free.get()
        try:
            return await supervisor.score(units)
        finally:
            self._free.put_nowait(supervisor)

    def _stop(self) -> None:
        self._closed = True
        for supervisor in self._supervisors:
            supervisor.stop()


def _chunks(units: list[Sequence[Sample]], count: int) -> list[list[Sequence[Sample]]]:
    """At most `count` runs of neighbours, of nearly one size."""
    size = max(1, math.ceil(len(units) / count))
    return [units[start : start + size] for start in range(0, len(units), size)]
