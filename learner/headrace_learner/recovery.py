"""Recovery of the state that the learner before left: the newest saved state, and the groups of the steps since.

    newest valid snapshot, else newest valid checkpoint, else the base model     then: replay of the settled steps since

Invariants: no restored state is newer than the ledger; every snapshot and checkpoint that is passed over is reported,
with its problem.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace_core.errors import Damaged, NotFound
from headrace_core.jobs.job_record import JobRecord
from headrace_core.ledger.records import Step
from headrace_core.types.trajectory import Group

from .checkpoints.checkpoint import NewestCheckpoint
from .checkpoints.memory_snapshot import Snapshots
from .distributed.rank_commands import Load, Restore
from .distributed.rank_coordinator import Coordinator
from .ports import CheckpointStore
from .training.trainer import Trainer


class Recovery:
    """The recovery of one start of a learner; `newest` is the ledger's policy version."""

    def __init__(self, coordinator: Coordinator, job: JobRecord, checkpoints: CheckpointStore, newest: int) -> None:
        self._coordinator, self._job, self._checkpoints, self._newest = coordinator, job, checkpoints, newest

    async def go_back(
        self, trainer: Trainer, snapshots: Snapshots | None, checkpoint: NewestCheckpoint
    ) -> tuple[int, str]:
        """Bring the trainer to the newest saved state. Returns its version, and what it was restored from, in words.

        `checkpoint`: the newest checkpoint.
        """
        if snapshots is not None:
            command = Restore(checkpoint.version, self._newest)
            restored = await self._coordinator.run_on_all(
                command, lambda: snapshots.restore(command.least, command.most)
            )
            await self.report("snapshot passed over", restored.passed_over)
            if restored.version is not None:
                return restored.version, f"snapshot at version {restored.version}"
        if (path := checkpoint.path) is None:
            return 0, "the base model"
        await self._coordinator.run_on_all(Load(str(path)), lambda: self._checkpoints.load(trainer, path))
        return checkpoint.version, f"checkpoint at version {checkpoint.version}"

    async def groups(self, step: Step, checkpoint: NewestCheckpoint, version: int) -> list[Group]:
        """The groups of a settled step that the restored state, of `version`, does not include.

        Raises `Damaged` if the ledger has deleted them.
        """
        try:
            return await self._job.ledger.groups(step.groups)
        except NotFound as error:
            passed_over = "; ".join(checkpoint.passed_over) or "none"
            raise Damaged(
                f"the state at version {self._newest} cannot be made again: the newest that is whole is version "
                f"{version}, and the ledger keeps the groups of step {step.version} no longer; checkpoints passed "
                f"over: {passed_over}. Fork a new job from a checkpoint"
            ) from error

    async def report(self, what: str, problems: Iterable[str]) -> None:
        """Emit a warning `<what>: <problem>` for each of the problems."""
        for problem in problems:
            await self._job.store.emit_event(self._job.id, f"{what}: {problem}", level="warn")
