"""The steps of a learner whose model is loaded: first it replays settled steps, then it trains new ones.

    replay  settled steps newer than the restored state ─► train ─► record, report
    run     ┌─► claim ─► train ─► publish ─► settle ─► report ─► snapshot, record, checkpoint when due ─┐
            └───────────────────────────────────────────────────────────────────────────────────────────┘

`worker` states the invariants.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from headrace_core.activity_timer import ActivityTimer
from headrace_core.errors import Damaged, WeightsDamaged
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.jobs.weight_publications import Publications
from headrace_core.ledger.records import Step, Term
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.atomic_write import written_whole
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.job import Checkpoint, model_name, new_id
from headrace_core.types.trajectory import Group

from .batch_claims import BatchClaims, RunEnded, end_if_void
from .checkpoints.checkpoint import NewestCheckpoint
from .checkpoints.memory_snapshot import Snapshots
from .checkpoints.retention import Retention
from .distributed.rank_commands import Publish, Save, Snapshot, Train, WriteModel
from .durable_writes import DurableWriter
from .ports import LearnerPorts
from .recovery import Recovery
from .rollout_recorder import RolloutRecorder
from .step_report import StepReporter
from .training.mismatch import MismatchWatch
from .training.step_metrics import summarise
from .training.trainer import StepResult, Trainer


class StepLoop:
    """Trains under one term of the ledger until `stopping` is set.

    `loaded`: the trainer, and its snapshots where the job takes any.
    """

    def __init__(
        self,
        config: WorkerConfig,
        ports: LearnerPorts,
        live: SettingsLog,
        term: Term,
        loaded: tuple[Trainer, Snapshots | None],
        stopping: asyncio.Event,
    ) -> None:
        self._config, self._ports, self._settings = config, ports, config.settings
        self._live, self._term, self._stopping = live, term, stopping
        self._trainer, self._snapshots = loaded
        job = ports.job
        self._ledger, self._jobs = job.ledger, job.store
        self._coordinator, self._checkpoints, self._weights = ports.coordinator, ports.checkpoints, ports.weights
        self._claims = BatchClaims(config, job, live, ports.clock, stopping)
        self._durable = DurableWriter(self._coordinator, job, config, ports.clock)
        self._publications = Publications(job.redis, job.id)
        self._mismatch = MismatchWatch(self._jobs, job.id, self._settings)
        self._recorder = RolloutRecorder(job.redis, job.id, self._settings)
        self._checkpoint_every = self._settings.checkpoint_every(config.total_steps)
        self._retention = Retention(
            self._jobs, job.id, Path(config.output_dir), self._settings.keep_checkpoints, self._checkpoint_every
        )
        self._reporter = StepReporter(job, live, config.total_steps)
        self.timer = ActivityTimer("start", ports.clock.monotonic)
        """Time spent waiting for `groups`, training (`busy`), and in each later stage."""
        self.version = 0
        """Policy version that the trainer holds."""
        self.tokens = self.groups = 0
        """Tokens and groups trained since `begin`."""
        self._ahead = False
        """Whether the trainer holds a step that is not settled yet. Such a state is never saved."""
        self._saved = [0]
        """Policy versions of this job's checkpoints, oldest first; 0 is the base model."""
        self._trained_tokens = 0
        """Tokens trained by the whole job."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that the trainer's micro-batches have computed, also within the step in progress."""
        return self._trainer.computed_tokens

    # ── start: restore and replay ────────────────────────────────────────────────────────────────────────────────────

    async def recover(self, recovery: Recovery, checkpoint: NewestCheckpoint) -> str:
        """Restore the newest complete state. Returns its source, for the event of the worker's start."""
        if checkpoint.path is not None:
            self._saved.append(checkpoint.version)
            await self._announce(checkpoint.path, checkpoint.version, {})
        self.version, source = await recovery.go_back(self._trainer, self._snapshots, checkpoint)
        return source

    async def replay(self, recovery: Recovery, checkpoint: NewestCheckpoint) -> int:
        """Train the settled steps newer than the restored state again, from their stored groups. Returns their number.

        Raises `Damaged` if the groups are gone, or the steps do not lead to the ledger's version.
        """
        await self._live.refresh()
        self._trained_tokens = await self._ledger.trained_tokens()
        again = await self._ledger.steps(self.version)
        reported = await self._jobs.history.last_step(self._config.job_id)
        for step in again:
            groups = await recovery.groups(step, checkpoint, self.version)
            result = await self._train(groups)
            self.version = step.version + 1
            await self._recorder.record(groups, result, self.version)
            if self.version > reported:  # the previous learner died after settling, before reporting
                await self._report(groups, result)
        await self._recorder.flush()
        if self.version != self._term.version:
            raise Damaged(f"the ledger is at version {self._term.version}, but its steps lead to {self.version} only")
        if again:
            await self._snapshot()
        return len(again)

    async def publish_again(self) -> None:
        """Publish the ledger's newest weights again if they are gone, as after a restart of the machine."""
        version, name = await self._ledger.newest()
        if name is None:
            return
        try:
            self._weights.open(name)
        except WeightsDamaged:
            await self._publish(version, int(name.rpartition("-t")[2]))

    # ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Start measuring time for the run."""
        self.timer = ActivityTimer("groups", self._ports.clock.monotonic)
        self._reporter = StepReporter(self._ports.job, self._live, self._config.total_steps)

    async def run(self) -> str:
        """Train until all steps are done. Returns `finished`, `closed` (the ledger is) or `stopped` (it was asked to).

        A job that pauses gets a checkpoint of its last settled step first.
        """
        try:
            while self.version < self._config.total_steps:
                await self._step()
            if self._saved[-1] != self.version:  # the previous learner died before its last checkpoint
                await self._save({})
            await self._write_model()
        except RunEnded as ended:
            await self._recorder.flush()
            nothing_to_save = self._saved[-1] == self.version or self._ahead
            if str(ended) == "stopped" and not nothing_to_save and await self._pausing():
                await self._save({})
            return str(ended)
        return "finished"

    async def _pausing(self) -> bool:
        return (await self._jobs.get(self._config.job_id)).status == "paused"

    async def _step(self) -> None:
        groups = await self._claims.next_batch(self._term, self.version)
        self.timer.switch("busy")
        self._ahead = True
        result = await self._train(groups)
        await self._mismatch.look(result.measured.extra, self.version, str(self._trainer.policy.device))
        # if the job pauses (the status is set before the learner is stopped), this step is still settled
        if self._stopping.is_set() and not await self._pausing():
            raise RunEnded("stopped")
        self.timer.switch("publish")
        weights = await self._publish(self.version + 1, self._term.number)
        self.timer.switch("settle")
        await self._settle(groups, result, weights)
        await self._report(groups, result)  # before a snapshot or checkpoint: a step that one holds is not replayed
        self.timer.switch("snapshot")
        if self.version % max(1, self._settings.snapshot_every) == 0:
            await self._snapshot()
        await self._recorder.record(groups, result, self.version)
        if (
            self.version % self._checkpoint_every == 0
            or self.version == self._config.total_steps
            or await self._ledger.needs_checkpoint()
        ):
            self.timer.switch("checkpoint")
            reward = summarise(groups).reward_mean
            await self._save({} if reward is None else {"train_mean_reward": reward})
        self.timer.switch("groups")

    async def _train(self, groups: tuple[Group, ...] | list[Group]) -> StepResult:
        """Train one step under the settings recorded for its version, which are fixed from its first claim on."""
        version, now = self.version, self._live.at(self.version)
        command = Train(version, tuple(g.group_id for g in groups), now.max_staleness, now.peak_learning_rate)
        self._trainer.apply_settings(command.max_staleness, command.learning_rate)
        return await self._coordinator.run_on_all(command, lambda: self._trainer.step(groups, version))

    async def _publish(self, version: int, term: int) -> str:
        """Publish the weights. Returns the name under which rollout workers find them."""
        write = self._trainer.policy.write_weights
        published = await self._durable.write(Publish(), lambda: self._weights.publish(version, term, write))
        await self._publications.add(published)
        return published.name

    async def _settle(self, groups: tuple[Group, ...], result: StepResult, weights: str) -> None:
        step = Step(
            version=self.version,
            groups=tuple(g.group_id for g in groups),
            ages=dict(sorted(result.counts.contributing.items())),
            masked_tokens=result.counts.masked.total(),
        )
        end_if_void(self._config.job_id, self._term, await self._ledger.settle(self._term, step, weights))
        self.version += 1
        self._ahead = False
        self.groups += len(groups)
        self.tokens += sum(step.ages.values())
        self._trained_tokens += sum(step.ages.values())

    async def _report(self, groups: Sequence[Group], result: StepResult) -> None:
        """Report the step that produced the present version, with the time since the previous report."""
        stalled = 0.0 if self._snapshots is None else self._snapshots.stalled
        await self._reporter.report(groups, result, self.version, self.timer.seconds(), stalled)
        await self._jobs.update(self._config.job_id, trained_tokens=self._trained_tokens)

    # ── state on disk ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _save(self, metrics: dict[str, float]) -> None:
        """Save and announce a checkpoint; the ledger then forgets the groups that two checkpoints hold."""
        version = self.version
        await self._recorder.flush()
        path = await self._durable.save(Save(version), lambda: self._checkpoints.save(self._trainer, version))
        await self._announce(path, version, metrics)
        await self._ledger.forget_before(self._saved[-1])
        self._saved.append(version)
        await self._retention.apply()

    async def _announce(self, path: Path, version: int, metrics: dict[str, float]) -> None:
        """Add a checkpoint to the job's record, unless a previous learner did so before it died."""
        if any(c.step == version for c in await self._jobs.checkpoints(self._config.job_id)):
            return
        name = model_name(await self._jobs.get(self._config.job_id), version)
        checkpoint = Checkpoint(new_id("ftckpt_"), self._ports.clock.time(), version, name, str(path), metrics)
        await self._jobs.add_checkpoint(self._config.job_id, checkpoint)
        await self._jobs.emit_event(self._config.job_id, f"Checkpoint created at step {version} with name {name}")

    async def _snapshot(self) -> None:
        """Take a snapshot of a settled step. Without memory for it, the job continues with checkpoints only."""
        if (snapshots := self._snapshots) is None:
            return
        command = Snapshot(self.version)
        reason = await self._coordinator.run_on_all(command, lambda: snapshots.begin(command.version))
        if reason is not None:
            self._snapshots = None
            message = f"no snapshots are taken, only checkpoints: {reason}"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")

    async def _write_model(self) -> None:
        """Write the trained model as a folder, atomically.

        The ledger keeps the last groups until it is closed: a job paused just now may resume from an older checkpoint.
        """
        final = JobFolder(Path(self._config.output_dir)).model
        shutil.rmtree(final, ignore_errors=True)
        with written_whole(final) as partial:
            await self._coordinator.run_on_all(WriteModel(), lambda: self._trainer.policy.write_model(partial))

    async def end_snapshots(self) -> None:
        """Wait until the last snapshot is complete. Raises `RuntimeError` if other ranks that it needs are gone."""
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.close)

    async def close(self) -> None:
        """Wait for the last snapshot, and stop recording groups. Idempotent."""
        try:
            await self.end_snapshots()
        except RuntimeError as error:  # a collective whose other ranks are gone; `run` has raised for that
            message = f"the last snapshot did not become whole: {error}"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")
        await self._recorder.close()
