"""Idle steps, which leave the policy unchanged: an event reports the first one, and too many in a row pause the job.

    no completion of a step has a reward         ─► an event; N in a row: `NothingLearned`, the job pauses
    in each group all rewards are equal          ─► an event; N in a row, none before them with a gradient: the same
    all tokens are older than max_staleness      ─► an event; counts like equal rewards
    no step of the whole job had a reward        ─► `NothingScored`: the job fails, since it returns its base model

N is `max_steps_without_gradient`; with 0 no job pauses. After a step with a gradient, equal rewards no longer pause the
job: the policy may have learned all that the reward can tell apart. Steps are counted from the version at which the job
began or was resumed.
"""

from __future__ import annotations

from typing import Self

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import HeadraceError
from headrace_core.jobs.history import STEPS, HistoryEntry
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.json_records import decode_records
from headrace_core.types.events import IdleStep
from headrace_core.types.job import Job
from headrace_core.types.metrics import StepMetrics

from .pause_reasons import JobCannotContinue

_READ_STEPS = 200
"""Steps read in one call to Redis."""


class NothingLearned(JobCannotContinue):
    """Too many steps in a row left the policy unchanged. The message says why, and what the user can change."""

    code = "nothing_learned"


class NothingScored(HeadraceError):
    """All steps of the job are done, and no completion of any step had a reward."""

    code = "nothing_scored"


class IdleSteps:
    """Counts the idle steps of one job; the controller calls `check` about once a second."""

    def __init__(self, jobs: JobStore, job_id: str, settings: Hyperparameters, version: int) -> None:
        """`version`: steps up to this policy version do not count as idle. They still count as evidence that a step had
        a gradient, or a reward."""
        self._jobs, self._job_id, self._settings = jobs, job_id, settings
        self._counted_from = version
        self._last_entry: int | None = None
        """Number of the last history entry that was read; None before the first `check`."""
        self._scored = self._policy_changed = False
        self._reported: set[str] = set()
        """Kinds of idle step that an event has reported since the last step with a gradient."""
        self._idle_in_a_row = self._unscored_in_a_row = 0
        """Newest steps in a row that were idle; those in a row that had no reward."""

    @classmethod
    async def at_current_version(cls, record: JobRecord, job: Job) -> Self:
        """For a job that begins or was resumed: counts from its ledger's current policy version."""
        settings = Hyperparameters.model_validate(job.hyperparameters)
        return cls(record.store, job.id, settings, (await record.ledger.newest())[0])

    async def check(self) -> None:
        """Count the steps since the last call. Raises `NothingLearned`."""
        if self._last_entry is None:
            self._last_entry = await self._skip_uncounted()
        while entries := await self._jobs.history.after(self._job_id, self._last_entry, _READ_STEPS, STEPS):
            for entry in entries:
                self._last_entry = entry.number
                for step in self._decode_step(entry):
                    await self._check_step(step)

    async def end(self) -> None:
        """Raises `NothingScored` where no step had a reward."""
        await self.check()
        if not self._scored:
            raise NothingScored(
                f"no completion of the job's {self._settings.n_steps or 'many'} steps was given a reward, so the model "
                f"is the one it began with: {await self._describe_rewards()}; {_TRY_IT}",
                param="grader",
            )

    async def _skip_uncounted(self) -> int:
        """Read the steps that do not count, until one with a gradient is found; return the number of the last entry
        before the steps that count."""
        number = 0
        while entries := await self._jobs.history.after(self._job_id, number, _READ_STEPS, STEPS):
            for entry in entries:
                for step in self._decode_step(entry):
                    if step.step > self._counted_from:
                        return number
                    self._record_step(step)
                if self._policy_changed:
                    return await self._jobs.history.before_step(self._job_id, self._counted_from + 1)
                number = entry.number
        return number

    def _decode_step(self, entry: HistoryEntry) -> list[StepMetrics]:
        """The entry as a list of one step; an empty list for a damaged record."""
        return decode_records([(f"entry {entry.number} of the history of {self._job_id}", entry.data)], StepMetrics)

    def _record_step(self, step: StepMetrics) -> str | None:
        """Remember whether the step had a reward and a gradient. Returns its kind of idleness; None if it had a
        gradient."""
        self._scored |= step.reward_mean is not None
        idle = self._idle_kind(step)
        self._policy_changed |= idle is None
        return idle

    def _idle_kind(self, step: StepMetrics) -> str | None:
        if step.reward_mean is None:
            return "unscored"
        if step.grad_norm > 0 or step.step <= self._settings.critic_warmup_steps:
            return None
        return "too old" if step.tokens == 0 and step.masked_tokens > 0 else "equal"

    async def _check_step(self, step: StepMetrics) -> None:
        idle = self._record_step(step)
        if idle is None:
            self._idle_in_a_row = self._unscored_in_a_row = 0
            self._reported.clear()
            return
        self._idle_in_a_row += 1
        self._unscored_in_a_row = self._unscored_in_a_row + 1 if idle == "unscored" else 0
        if idle not in self._reported:
            self._reported.add(idle)
            message = f"Step {step.step} changed nothing: {await self._describe(idle, step)}"
            await self._jobs.emit_event(self._job_id, message, level="warn", data=IdleStep(step.step, idle))
        max_idle = self._settings.max_steps_without_gradient
        if max_idle and (
            self._unscored_in_a_row >= max_idle or (self._idle_in_a_row >= max_idle and not self._policy_changed)
        ):
            raise NothingLearned(
                f"{self._idle_in_a_row} steps in a row, up to step {step.step}, changed nothing: "
                f"{await self._describe(idle, step)}. max_steps_without_gradient={max_idle} allows no more"
            )

    async def _describe(self, idle: str, step: StepMetrics) -> str:
        if idle == "unscored":
            return (
                f"none of its {step.completions} completions has a reward: {await self._describe_rewards()}; {_TRY_IT}"
            )
        if idle == "too old":
            return f"all of its {step.masked_tokens} tokens are older than max_staleness, and were masked"
        return (
            f"in each of its {step.groups} groups all rewards are equal (their mean is {step.reward_mean:.3g}), so "
            "there is nothing to compare: the task is too easy or too hard for the model, or the reward does not find "
            f"what the model writes; {_TRY_IT}"
        )

    async def _describe_rewards(self) -> str:
        """How many completions the job's reward scored, abstained from and failed for, in words."""
        rewards = await self._jobs.rewards(self._job_id)
        completions, none = sum(r.completions for r in rewards), sum(r.not_applicable for r in rewards)
        failed = sum(sum(r.failures.values()) for r in rewards)
        return (
            f"of {completions} so far the grader had no opinion of {none} (a function returned None), "
            f"and failed for {failed}"
        )


_TRY_IT = "read what the model writes on the job's page, and try the reward on it with `headrace rewards check`"
