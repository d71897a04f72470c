"""Checks and tries graders in a process of the rewards service, because their code must not run in the gateway.

ask ─► `python -m headrace_rewards check` ─► CheckReport    one process per check, with a time limit

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
from ..limited_processes.process_slots import ProcessSlots
from .plausible_completions import plausible_completions

CHECK_SECONDS = 120.0
PARAM = "method.reinforcement.grader"
TOKENIZER = "tokenizer.json"
REHEARSAL_SECONDS = 30.0
"""Time for the completions that a job's grader is tried on. A slower grader is accepted, with a remark to its user."""
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
    """Check a grader; the samples are tokenized by `model`.

    Raises `InvalidRequest` if it cannot work; the message says why, and `param` names the field of the request.
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
        error = verdict.error
        field = ".".join(p for p in (param, (error.param or "").removeprefix("grader").lstrip(".")) if p)
        raise InvalidRequest(error.message, param=field, code=error.code)
    return verdict


class GraderTrials:
    """Runs the checks of graders that users try or submit with a job. A limited number runs at the same time; the
    others wait, up to a time limit."""

    def __init__(self, rules: RewardPermissions, run: RunProcess = started) -> None:
        self._rules = rules
        self._run = run
        self._slots = ProcessSlots(_TRIALS_AT_ONCE, _TRIAL_SECONDS, f"{_TRIALS_AT_ONCE} graders are being tried")

    async def verdict(self, grader: Any, samples: Sequence[dict[str, Any]] = ()) -> CheckReport:
        """Check a grader. Raises `InvalidRequest` if it cannot work, `TimedOut` if no slot became free in time."""
        async with self._slots.slot():
            return await check_grader(grader, self._rules, samples=samples, seconds=_TRIAL_SECONDS, run=self._run)

    async def rehearsed(
        self, grader: dict[str, Any], rules: RewardPermissions, row: Row, model: Path, *, tolerant: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """(a job's grader with all defaults, remarks for its user), after trying it on completions of `row`.

        `rules`: those of the job. Raises like `verdict`; a `tolerant` job accepts even a grader that fails on all of
        the completions.
        """
        groups = plausible_completions(row)
        samples, sizes = [sample for group in groups for sample in group], [*map(len, groups)]
        async with self._slots.slot():
            verdict = await check_grader(
                *(grader, rules), samples=samples, groups=sizes, param=PARAM, rehearsal=True, model=model, run=self._run
            )
        assert verdict.grader is not None  # of a grader that can be used
        if verdict.cannot is not None and not tolerant:
            raise InvalidRequest(verdict.cannot, param=PARAM)
        tried = [f"The reward was tried on the first row: {remark}" for remark in verdict.remarks]
        return verdict.grader, tried + [f"Without effect: {field}" for field in verdict.ignored]
