"""What the learner before left: the newest state to go back to, and the groups of the steps since.

    newest whole snapshot ─► newest whole checkpoint ─► the base model        then: replay of the settled steps since

Invariants: no state is gone back to that is newer than the ledger; what is passed over is told, with what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace_core.errors import Damaged, NotFound
from headrace_core.jobs.job_record import JobRecord
from headrace_core.ledger.ledger import Step
from headrace_core.types.trajectory import Group

from .checkpoints.checkpoint import Found
from .checkpoints.memory_snapshot import Snapshots
from .distributed.rank_commands import Load, Restore
from .distributed.rank_coordinator import Coordinator
from .ports import CheckpointStore
from .training.trainer import Trainer


class Recovery:
    """Of one start of a learner; `newest` is the ledger's policy version."""

    def __init__(self, coordinator: Coordinator, job: JobRecord, checkpoints: CheckpointStore, newest: int) -> None:
        self._coordinator, self._job, self._checkpoints, self._newest = coordinator, job, checkpoints, newest

    async def go_back(self, trainer: Trainer, snapshots: Snapshots | None, found: Found) -> tuple[int, str]:
        """Bring the trainer to the newest state that is kept; returns its version, and whose it is, in words."""
        if snapshots is not None:
            order = Restore(found.version, self._newest)
            restored = await self._coordinator.run_on_all(order, lambda: snapshots.restore(order.least, order.most))
            await self.report("snapshot passed over", restored.passed_over)
            if restored.version is not None:
                return restored.version, f"snapshot at version {restored.version}"
        if (path := found.path) is None:
            return 0, "the base model"
        await self._coordinator.run_on_all(Load(str(path)), lambda: self._checkpoints.load(trainer, path))
        return found.version, f"checkpoint at version {found.version}"

    async def groups(self, step: Step, found: Found, version: int) -> list[Group]:
        """Of a step that the state, of `version`, does not hold. Raises `Damaged` where they are kept no longer."""
        try:
            return await self._job.ledger.replay(step)
        except NotFound as error:
            passed_over = "; ".join(found.passed_over) or "none"
            raise Damaged(
                f"the state at version {self._newest} cannot be made again: the newest that is whole is version "
                f"{version}, and the ledger keeps the groups of step {step.version} no longer; checkpoints passed "
                f"over: {passed_over}. Fork a new job from a checkpoint"
            ) from error

    async def report(self, what: str, which: Iterable[str]) -> None:
        """Emit one warning for each of `which`, after the words of `what`."""
        for one in which:
            await self._job.store.emit_event(self._job.id, f"{what}: {one}", level="warn")
