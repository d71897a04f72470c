"""What a rollout worker says beside its work: events for the user, entries of the job's metrics stream."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.grader_check import Failure
from headrace_core.protocols.worker import rollout_name
from headrace_core.types.events import RewardFailure, RowRefused, Standstill, TightRow, Wait
from headrace_core.types.metrics import UpdateMetrics

from .engines.engine import RequestRefused, UpdateReport
from .monitored_reward import MonitoredReward
from .prompts import Prompt
from .reward_scoring import by_kind

TOLD_ROWS = 5
"""Rows that cannot be served told by one worker; all are counted."""


class WorkerReporter:
    """Of one worker of one job."""

    def __init__(self, job: JobRecord, worker: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._jobs, self._recoveries, self._job_id = job.store, job.recoveries, job.id
        self._worker, self._clock = worker, clock

    async def failures(self, watched: MonitoredReward) -> None:
        """The reward failures that the user should see and has not seen yet."""
        for group, failure in watched.take_failures():
            message = f"reward failed for a completion of group {group}: {failure.kind}: {failure.message}"
            await self._warn(message, _failed(failure, group))

    async def reward(self, watched: MonitoredReward) -> None:
        """What the reward did, if it did something."""
        if (counted := watched.take()) is not None:
            await self._jobs.record_reward(self._job_id, counted)

    async def evaluation_failures(self, version: int, failures: Sequence[Failure], samples: int) -> None:
        """How many samples of an evaluation have no reward, and why the first has none."""
        if failures:
            message = f"reward failed in the evaluation of version {version}: {by_kind(failures)}, of {samples}"
            await self._warn(message, _failed(failures[0]))

    async def tightest_row(self, tightest: tuple[int, Prompt] | None, max_tokens: int) -> None:
        """Whose reference answer leaves the least room; told by the first worker, as all have the same rows."""
        if tightest is not None and self._worker == rollout_name(0):
            room, prompt = tightest
            await self._warn(
                f"the reference answer of line {prompt.data.line} leaves {room} tokens for a completion, less than "
                f"max_tokens ({max_tokens}): raise max_context, or shorten the row",
                TightRow(prompt.row, prompt.data.line, room),
            )

    async def refused_row(self, group: int, prompt: Prompt, error: RequestRefused, before: int) -> None:
        """The engine cannot serve a row of the training file; `before`: how many of them this worker met by then."""
        if before < TOLD_ROWS:
            line = prompt.data.line
            message = f"the row of line {line} cannot be generated, and group {group} ends: {error}"
            await self._warn(message, RowRefused(group, prompt.row, line, str(error)))

    async def evaluation_refused(self, version: int, refused: int, samples: int) -> None:
        """How many rows of the validation file the engine cannot serve."""
        if refused:
            message = f"{refused} of {samples} rows could not be generated in the evaluation of version {version}"
            await self._warn(f"{message}: its figures are without them")

    async def unstable_boundary(self) -> None:
        """Of the first reference answer that stands where the tokenizer would not cut."""
        await self._warn(
            "reference answers are put where this tokenizer would not cut the text, so their likelihood says "
            "little: change the grader's 'opening' or 'reference'"
        )

    async def update(self, report: UpdateReport) -> None:
        """A policy version was applied."""
        await self._jobs.record(
            self._job_id,
            UpdateMetrics(
                worker=self._worker,
                time=self._clock.time(),
                version=report.version,
                staged_seconds=report.staged_seconds,
                paused_seconds=report.paused_seconds,
                requests_in_flight=report.requests_in_flight,
            ),
        )

    async def update_given_up(self, version: int, present: int, seconds: float, error: Exception) -> None:
        """Generation goes on with the present version, and the newest one is tried again."""
        waits = [Wait(self._worker, f"weights of version {version}", round(seconds, 1))]
        await self._warn(
            f"{self._worker} gave up the update to version {version} after {seconds:.1f} s and goes on with version "
            f"{present}: {error}",
            Standstill(waits, "abort_update"),
        )
        await self._recoveries.count_action("abort_update")

    async def _warn(self, message: str, data: msgspec.Struct | None = None) -> None:
        await self._jobs.emit_event(self._job_id, message, level="warn", data=data)


def _failed(failure: Failure, group: int | UnsetType = UNSET) -> RewardFailure:
    return RewardFailure(failure.kind, failure.message, failure.traceback, group)
