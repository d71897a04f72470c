"""A grader is checked, and tried, where its code may run: in a process of the rewards service, never in the gateway.

ask ─► `python -m headrace_rewards check` ─► Verdict      a process a question; it ends with its answer or its time
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import msgspec

from headrace_core.errors import InvalidRequest, TimedOut
from headrace_core.reward_rules import RewardRules

from . import rewards_process

CHECK_SECONDS = 120.0
PARAM = "method.reinforcement.grader"
_TRIAL_SECONDS = 180.0
_TRIALS_AT_ONCE = 4


class Outcome(msgspec.Struct):
    """What a grader made of one sample; the fields of the other types are at their defaults."""

    type: Literal["score", "not_applicable", "failure"]
    value: float | None = None
    components: dict[str, float] = {}
    sample_fault: str = ""
    kind: str = ""
    message: str = ""
    traceback: str = ""


class Part(msgspec.Struct):
    """A grader, or one that it holds, and its failures."""

    name: str
    type: str
    failures: list[Outcome] = []


class Problem(msgspec.Struct):
    """Why a grader cannot be used; `param` names the field, from `grader` on."""

    message: str
    param: str | None
    code: str


class Verdict(msgspec.Struct):
    """What the rewards service answers: see `headrace_rewards.check`."""

    ok: bool
    error: Problem | None
    grader: dict[str, Any] | None
    outcomes: list[Outcome]
    seconds: list[float]
    parts: list[Part]


async def ask(
    grader: Any,
    rules: RewardRules,
    *,
    samples: Sequence[dict[str, Any]] = (),
    groups: Sequence[int] | None = None,
    seconds: float = CHECK_SECONDS,
    param: str = "grader",
) -> Verdict:
    """The verdict on a grader that can be used. Raises `InvalidRequest` for one that cannot work; its message says why,
    and `param` is where the request holds the grader."""
    question = {
        "grader": grader,
        "rules": rules,
        "samples": samples,
        "groups": [len(samples)] if groups is None else groups,
    }
    what = "the check of the grader"
    verdict = await rewards_process.ask_rewards("check", question, Verdict, seconds=seconds, what=what, param=param)
    if verdict.error is not None:
        found = verdict.error
        field = ".".join(p for p in (param, (found.param or "").removeprefix("grader").lstrip(".")) if p)
        raise InvalidRequest(found.message, param=field, code=found.code)
    return verdict


class Trials:
    """Graders that users try, and those of jobs that they submit: so many at a time, the others wait within their
    limit."""

    def __init__(self, rules: RewardRules) -> None:
        self._rules = rules
        self._places = asyncio.Semaphore(_TRIALS_AT_ONCE)

    async def verdict(self, grader: Any, samples: Sequence[dict[str, Any]] = ()) -> Verdict:
        """Raises `InvalidRequest` for a grader that cannot work, `TimedOut` where no place came free in time."""
        async with self._place():
            return await ask(grader, self._rules, samples=samples, seconds=_TRIAL_SECONDS)

    async def checked(self, grader: dict[str, Any]) -> dict[str, Any]:
        """The grader of a job, complete. Raises as `verdict` does."""
        async with self._place():
            verdict = await ask(grader, self._rules, param=PARAM)
        assert verdict.grader is not None  # of a grader that can be used
        return verdict.grader

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_TRIAL_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            busy = f"{_TRIALS_AT_ONCE} graders are being tried, and none ended within {_TRIAL_SECONDS:.0f} s"
            raise TimedOut(busy) from error
        try:
            yield
        finally:
            self._places.release()
