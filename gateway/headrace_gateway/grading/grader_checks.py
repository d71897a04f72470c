"""A grader is checked, and tried, where its code may run: in a process of the rewards service, never in the gateway.

ask ─► `python -m headrace_rewards check` ─► CheckReport    a process a question; it ends with its answer or its time

In the gateway the process is forked from one that has imported everything: `forked_process`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import CheckReport, CheckRequest
from headrace_core.storage.dataset import Row

from ..limited_processes.json_process import RunProcess, ask_rewards, started
from ..limited_processes.process_slots import Places
from .plausible_completions import plausible_completions

CHECK_SECONDS = 120.0
PARAM = "method.reinforcement.grader"
TOKENIZER = "tokenizer.json"
REHEARSAL_SECONDS = 30.0
"""For the completions that a job's grader is tried on; one that is slower is taken, and its user told."""
_TRIAL_SECONDS = 180.0
_TRIALS_AT_ONCE = 4


async def check_grader(
    grader: Any,
    rules: RewardPermissions,
    *,
    samples: Sequence[dict[str, Any]] = (),
    groups: Sequence[int] | None = None,
    seconds: float = CHECK_SECONDS,
    param: str = "grader",
    rehearsal: bool = False,
    model: Path | None = None,
    run: RunProcess = started,
) -> CheckReport:
    """The verdict on a grader that can be used; the samples' tokens are `model`'s.

    Raises `InvalidRequest` for one that cannot work; its message says why, and `param` is where the request holds it.
    """
    question = CheckRequest(
        grader=grader,
        rules=rules,
        samples=samples,
        groups=groups,
        rehearsal=rehearsal,
        tokenizer=None if model is None else str(model / TOKENIZER),
        seconds=REHEARSAL_SECONDS if rehearsal else None,
    )
    what = "the check of the grader"
    verdict = await ask_rewards("check", question, CheckReport, seconds=seconds, what=what, param=param, run=run)
    if verdict.error is not None:
        found = verdict.error
        field = ".".join(p for p in (param, (found.param or "").removeprefix("grader").lstrip(".")) if p)
        raise InvalidRequest(found.message, param=field, code=found.code)
    return verdict


class GraderTrials:
    """Graders that users try, and those of jobs that they submit: so many at a time, the others wait within their
    limit."""

    def __init__(self, rules: RewardPermissions, run: RunProcess = started) -> None:
        self._rules = rules
        self._run = run
        self._places = Places(_TRIALS_AT_ONCE, _TRIAL_SECONDS, f"{_TRIALS_AT_ONCE} graders are being tried")

    async def verdict(self, grader: Any, samples: Sequence[dict[str, Any]] = ()) -> CheckReport:
        """Raises `InvalidRequest` for a grader that cannot work, `TimedOut` where no place came free in time."""
        async with self._places.one():
            return await check_grader(grader, self._rules, samples=samples, seconds=_TRIAL_SECONDS, run=self._run)

    async def rehearsed(
        self, grader: dict[str, Any], rules: RewardPermissions, row: Row, model: Path, *, tolerant: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """(the grader of a job, complete; what to tell its user), after a rehearsal on completions of `row`.

        `rules` are the job's. Raises as `verdict` does; a `tolerant` job takes a grader that fails on all of them, too.
        """
        groups = plausible_completions(row)
        samples, sizes = [sample for group in groups for sample in group], [*map(len, groups)]
        async with self._places.one():
            verdict = await check_grader(
                *(grader, rules), samples=samples, groups=sizes, param=PARAM, rehearsal=True, model=model, run=self._run
            )
        assert verdict.grader is not None  # of a grader that can be used
        if verdict.cannot is not None and not tolerant:
            raise InvalidRequest(verdict.cannot, param=PARAM)
        tried = [f"The reward was tried on the first row: {remark}" for remark in verdict.remarks]
        return verdict.grader, tried + [f"Without effect: {told}" for told in verdict.ignored]
