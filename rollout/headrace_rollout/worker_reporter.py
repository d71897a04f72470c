"""What a rollout worker reports: events for the user, and entries of the job's metrics stream."""

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

MAX_REPORTED_ROWS = 5
"""Number of rows that cannot be served which one worker reports as events; all are counted."""


class WorkerReporter:
    """The reports of one worker of one job."""

    def __init__(self, job: JobRecord, worker: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._jobs, self._recoveries, self._job_id = job.store, job.recoveries, job.id
        self._worker, self._clock = worker, clock

    async def failures(self, watched: MonitoredReward) -> None:
        """Emit events for the reward failures that were not reported yet."""
        for group, failure in watched.take_failures():
            message = f"reward failed for a completion of group {group}: {failure.kind}: {failure.message}"
            await self._warn(message, _failed(failure, group))

    async def reward(self, watched: MonitoredReward) -> None:
        """Record the reward's figures, if they have changed."""
        if (figures := watched.take()) is not None:
            await self._jobs.record_reward(self._job_id, figures)

    async def evaluation_failures(self, version: int, failures: Sequence[Failure], samples: int) -> None:
        """Emit one event for the samples of an evaluation whose reward failed, with the first failure."""
        if failures:
            message = f"reward failed in the evaluation of version {version}: {by_kind(failures)}, of {samples}"
            await self._warn(message, _failed(failures[0]))

    async def tightest_row(self, tightest: tuple[int, Prompt] | None, max_tokens: int) -> None:
        """Warn of the row whose reference answer leaves the fewest tokens for a completion.

        Only the first worker does, because all workers have the same rows.
        """
        if tightest is not None and self._worker == rollout_name(0):
            room, prompt = tightest
            await self._warn(
                f"the reference answer of line {prompt.data.line} leaves {room} tokens for a completion, less than "
                f"max_tokens ({max_tokens}): raise max_context, or shorten the row",
                TightRow(prompt.row, prompt.data.line, room),
            )

    async def refused_row(self, group: int, prompt: Prompt, error: RequestRefused, before: int) -> None:
        """Warn that the engine cannot serve a row of the training file. `before`: refused rows of this worker so
        far."""
        if before < MAX_REPORTED_ROWS:
            line = prompt.data.line
            message = f"the row of line {line} cannot be generated, and group {group} ends: {error}"
            await self._warn(message, RowRefused(group, prompt.row, line, str(error)))

    async def evaluation_refused(self, version: int, refused: int, samples: int) -> None:
        """Warn that the engine cannot serve some rows of the validation file."""
        if refused:
            message = f"{refused} of {samples} rows could not be generated in the evaluation of version {version}"
            await self._warn(f"{message}: its figures are without them")

    async def unstable_boundary(self) -> None:
        """Warn that reference answers begin where the tokenizer would not split the text."""
        await self._warn(
            "reference answers are put where this tokenizer would not cut the text, so their likelihood says "
            "little: change the grader's 'opening' or 'reference'"
        )

    async def update(self, report: UpdateReport) -> None:
        """Record an applied weight update."""
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
        """Warn that an update was abandoned: generation continues with the present version, and the newest is tried
        again."""
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
