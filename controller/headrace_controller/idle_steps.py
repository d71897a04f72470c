"""Steps that leave the policy as it was: told at the first one, and not gone on with for long.

    no completion of a step has a reward          ─► an event; so many in a row: `NothingLearned`, the job pauses
    every reward equals the others of its group   ─► an event; so many from the first step on: the same
    all tokens are too old                        ─► an event
    no step of a whole job had a reward           ─► `NothingScored`: it does not succeed with the model it began with

So many: `max_steps_without_gradient`; 0 pauses never. Equal rewards after a step that did teach pause nothing: the
policy may have learned all there is. Steps are counted from where the job began or was resumed.
"""

from __future__ import annotations

from typing import Self

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import HeadraceError
from headrace_core.jobs.history import STEPS, HistoryEntry
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import Job, JobStore
from headrace_core.redis_access.json_records import decode_records
from headrace_core.types.events import IdleStep
from headrace_core.types.metrics import StepMetrics

from .pause_reasons import JobCannotContinue

_AT_ONCE = 200
"""Steps read in one call."""


class NothingLearned(JobCannotContinue):
    """Steps go by and the policy stays as it is; the message says why, and what to change."""

    code = "nothing_learned"


class NothingScored(HeadraceError):
    """All steps are done, and no completion of any had a reward."""

    code = "nothing_scored"


class IdleSteps:
    """Of one job; `look` is called about once a second."""

    def __init__(self, jobs: JobStore, job_id: str, settings: Hyperparameters, version: int) -> None:
        """Steps up to policy version `version` are not counted: only whether one of them taught, or was scored."""
        self._jobs, self._job_id, self._settings = jobs, job_id, settings
        self._counted_from = version
        self._read: int | None = None
        """The last entry of the history that was seen; None before the first look."""
        self._scored = self._taught = False
        self._reported: set[str] = set()
        """What was told of the steps since one that taught."""
        self._idle = self._unscored = 0
        """Steps in a row, up to the newest, that taught nothing; that had no reward."""

    @classmethod
    async def from_here(cls, record: JobRecord, job: Job) -> Self:
        """Of a job that begins, or goes on."""
        settings = Hyperparameters.model_validate(job.hyperparameters)
        return cls(record.store, job.id, settings, (await record.ledger.newest())[0])

    async def look(self) -> None:
        """At the steps since the last time. Raises `NothingLearned`."""
        if self._read is None:
            self._read = await self._before()
        while entries := await self._jobs.history.after(self._job_id, self._read, _AT_ONCE, STEPS):
            for entry in entries:
                self._read = entry.number
                for step in self._step(entry):
                    await self._see(step)

    async def end(self) -> None:
        """Raises `NothingScored` where no step had a reward."""
        await self.look()
        if not self._scored:
            raise NothingScored(
                f"no completion of the job's {self._settings.n_steps or 'many'} steps was given a reward, so the model "
                f"is the one it began with: {await self._opinions()}; {_TRY_IT}",
                param="grader",
            )

    async def _before(self) -> int:
        """Look at the steps that are not counted until one is found that taught; where the others begin."""
        number = 0
        while entries := await self._jobs.history.after(self._job_id, number, _AT_ONCE, STEPS):
            for entry in entries:
                for step in self._step(entry):
                    if step.step > self._counted_from:
                        return number
                    self._note(step)
                if self._taught:
                    return await self._jobs.history.before_step(self._job_id, self._counted_from + 1)
                number = entry.number
        return number

    def _step(self, entry: HistoryEntry) -> list[StepMetrics]:
        """None of a damaged record."""
        return decode_records([(f"entry {entry.number} of the history of {self._job_id}", entry.data)], StepMetrics)

    def _note(self, step: StepMetrics) -> str | None:
        """Why the step taught nothing; None where it did."""
        self._scored |= step.reward_mean is not None
        idle = self._why(step)
        self._taught |= idle is None
        return idle

    def _why(self, step: StepMetrics) -> str | None:
        if step.reward_mean is None:
            return "unscored"
        if step.grad_norm > 0 or step.step <= self._settings.critic_warmup_steps:
            return None
        return "too old" if step.tokens == 0 and step.masked_tokens > 0 else "equal"

    async def _see(self, step: StepMetrics) -> None:
        idle = self._note(step)
        if idle is None:
            self._idle = self._unscored = 0
            self._reported.clear()
            return
        self._idle += 1
        self._unscored = self._unscored + 1 if idle == "unscored" else 0
        if idle not in self._reported:
            self._reported.add(idle)
            message = f"Step {step.step} changed nothing: {await self._in_words(idle, step)}"
            await self._jobs.emit_event(self._job_id, message, level="warn", data=IdleStep(step.step, idle))
        most = self._settings.max_steps_without_gradient
        if most and (self._unscored >= most or (self._idle >= most and not self._taught)):
            raise NothingLearned(
                f"{self._idle} steps in a row, up to step {step.step}, changed nothing: "
                f"{await self._in_words(idle, step)}. max_steps_without_gradient={most} allows no more"
            )

    async def _in_words(self, idle: str, step: StepMetrics) -> str:
        if idle == "unscored":
            return f"none of its {step.completions} completions has a reward: {await self._opinions()}; {_TRY_IT}"
        if idle == "too old":
            return f"all of its {step.masked_tokens} tokens are older than max_staleness, and were masked"
        return (
            f"in each of its {step.groups} groups all rewards are equal (their mean is {step.reward_mean:.3g}), so "
            "there is nothing to compare: the task is too easy or too hard for the model, or the reward does not find "
            f"what the model writes; {_TRY_IT}"
        )

    async def _opinions(self) -> str:
        """What became of the completions that were to be scored, so far."""
        counted = await self._jobs.rewards(self._job_id)
        completions, none = sum(c.completions for c in counted), sum(c.not_applicable for c in counted)
        failed = sum(sum(c.failures.values()) for c in counted)
        return (
            f"of {completions} so far the grader had no opinion of {none} (a function returned None), "
            f"and failed for {failed}"
        )


_TRY_IT = "read what the model writes on the job's page, and try the reward on it with `headrace rewards check`"
