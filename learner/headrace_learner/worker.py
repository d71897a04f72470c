"""The learner: claims groups, trains on them, publishes the policy they make, settles the step.

    start   enlist (the learner before is fenced out) ─► newest snapshot or checkpoint ─► replay what was settled since
    run     ┌─► claim ─► train ─► publish ─► settle ─► snapshot, checkpoint, when due ─► tell ─┐    beat, every
            │     ▲        one thread, for all of torch     └ copied beside what follows       │    two seconds
            │     └ waits on the ledger's signals                                              │
            └──────────────────────────────────────────────────────────────────────────────────┘
    stop    ends `run` between two of these stages; of a job that pauses, after a checkpoint

Invariants: a step is settled with the name of weights that are already published, so the name in the ledger can always
be loaded; from the same snapshot or checkpoint and the same settled steps, a new learner arrives at the same weights,
bit for bit; the groups of a step are forgotten only when two checkpoints hold it, so that one damaged checkpoint loses
nothing; what is kept of a step for reading is kept once it is settled, and before a checkpoint holds it; settings that
change while the job runs are, of each step, those on record for its version, first time and in a replay.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from headrace_core.activity_timer import ActivityTimer
from headrace_core.concurrency import first_to_end
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import Damaged, TimedOut, WeightsDamaged
from headrace_core.jobs.job_store import Checkpoint, model_name, new_id
from headrace_core.jobs.weight_publications import Publications
from headrace_core.ledger.ledger import Step, Term
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage.atomic_write import written_whole
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.events import StepSummary
from headrace_core.types.metrics import WorkerMetrics
from headrace_core.types.trajectory import Group

from .batch_claims import BatchClaims, RunEnded, end_if_void
from .checkpoints.checkpoint import Found
from .checkpoints.memory_snapshot import Snapshots
from .checkpoints.retention import Retention
from .distributed.rank_commands import Publish, Save, Snapshot, Train, WriteModel
from .durable_writes import DurableWriter
from .ports import LearnerPorts
from .recovery import Recovery
from .rollout_recorder import RolloutRecorder
from .step_report import event_message, step_metrics
from .training.mismatch import MismatchWatch
from .training.step_metrics import summarise
from .training.trainer import StepResult


class LearnerWorker:
    """See `headrace_core.protocols.worker.Worker`."""

    def __init__(self, config: WorkerConfig, ports: LearnerPorts) -> None:
        """`ports`, of which nothing is loaded yet: `start` does that, and `stop` closes them."""
        self._config, self._ports, self._settings = config, ports, config.settings
        job = ports.job
        self._ledger, self._jobs = job.ledger, job.store
        self._live = job.live_settings(self._settings)
        self._weights, self._checkpoints, self._clock = ports.weights, ports.checkpoints, ports.clock
        self._publications = Publications(job.redis, job.id)
        self._coordinator = ports.coordinator
        self._durable = DurableWriter(self._coordinator, job, config, self._clock)
        self._output = Path(config.output_dir)
        every = self._settings.checkpoint_every(config.total_steps)
        self._retention = Retention(self._jobs, job.id, self._output, self._settings.keep_checkpoints, every)
        self._mismatch = MismatchWatch(self._jobs, job.id, self._settings)
        self._recorder = RolloutRecorder(job.redis, job.id, self._settings)
        self._stopping, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._claims = BatchClaims(config, job, self._live, self._clock, self._stopping)
        self._ahead = False
        """Whether the trainer holds a step that is not settled: no state of it may be kept."""
        self._split = ActivityTimer("start", self._clock.monotonic)
        self._reported_seconds: dict[str, float] = {}
        """What the time was split into when a step was last told."""
        self._snapshots: Snapshots | None = None
        self._waited = 0.0
        """Seconds for which steps before this one waited for snapshots."""
        self._version = 0
        self._saved = [0]
        """Policy versions that checkpoints of this job hold, oldest first; 0 is the base model."""
        self._trained_tokens = self._new_tokens = self._new_groups = 0

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """A learner of real parts."""
        return cls(config, LearnerPorts.from_config(config))

    @property
    def term(self) -> Term:
        """What it claims and settles under, once it has started."""
        return self._term

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> dict[str, Any]:
        """Enlist, load, replay. Afterwards the policy is that of the ledger's newest version, and published."""
        began = self._clock.monotonic()
        await self._jobs.record_worker_start(self._config.job_id, self._config.worker, "learner")
        self._term = await self._ledger.enlist()
        await self._coordinator.connect()
        newest = self._term.version
        _, found = await asyncio.gather(
            self._coordinator.run_local(self._load), asyncio.to_thread(self._checkpoints.newest, newest)
        )
        loaded = self._clock.monotonic()
        recovery = Recovery(self._coordinator, self._ports.job, self._checkpoints, newest)
        await recovery.report("checkpoint passed over", found.passed_over)
        if found.path is not None:
            self._saved.append(found.version)
            await self._announce(found.path, found.version, {})
        self._version, source = await recovery.go_back(self._trainer, self._snapshots, found)
        gone_back = self._clock.monotonic()
        replayed = await self._replay(recovery, found)
        caught_up = self._clock.monotonic()
        await self._publish_again()
        self._split, self._reported_seconds = ActivityTimer("groups", self._clock.monotonic), {}
        return {
            "device": str(self._trainer.policy.device),
            "parameters": self._trainer.policy.parameters,
            "threads": self._config.threads,
            "version": self._version,
            "checkpoint": found.version,
            "from": source,
            "replayed_steps": replayed,
            "model_seconds": round(loaded - began, 2),
            "state_seconds": round(gone_back - loaded, 2),
            "replay_seconds": round(caught_up - gone_back, 2),
            "seconds": round(self._clock.monotonic() - began, 2),
        }

    async def run(self) -> str:
        """Train until all steps are done (`finished`), the ledger is closed (`closed`) or `stop` is called (`stopped`).

        Raises `TimedOut` when no batch comes together, `InvalidState` when another learner has taken over.
        """
        self._idle.clear()
        tasks = [asyncio.create_task(self._work(), name="work"), asyncio.create_task(self._beat_loop(), name="beat")]
        try:
            ended = await first_to_end(tasks)
            await self._end_snapshots()
            await self._coordinator.finish()
            return ended
        finally:
            self._idle.set()

    async def stop(self) -> None:
        """End `run` at the next stage, then let go of thread and connection. Idempotent."""
        self._stopping.set()
        try:
            await asyncio.wait_for(self._idle.wait(), self._config.stall_timeout)
        except TimeoutError as error:
            raise TimedOut(f"a training step did not end within {self._config.stall_timeout:.0f} s") from error
        try:
            await self._end_snapshots()
        except RuntimeError as error:  # of a collective whose other ranks are gone, as `run` has said by now
            message = f"the last snapshot did not become whole: {error}"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")
        await self._coordinator.close()
        await self._recorder.close()
        await self._ports.job.close()

    # ── start: to where the job is ───────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        self._trainer, self._snapshots = self._ports.load(self._coordinator.ranks)

    async def _replay(self, recovery: Recovery, found: Found) -> int:
        """Train the settled steps that the state does not hold once more, from the groups still kept for that."""
        await self._live.refresh()
        self._trained_tokens = await self._ledger.trained_tokens()
        again = await self._ledger.steps(self._version)
        told = await self._jobs.history.last_step(self._config.job_id)
        for step in again:
            groups = await recovery.groups(step, found, self._version)
            result = await self._train(groups)
            self._version = step.version + 1
            await self._recorder.record(groups, result, self._version)
            if self._version > told:  # the learner before died between its settlement and its measurement
                await self._report_step(groups, result)
        await self._recorder.flush()
        if self._version != self._term.version:
            raise Damaged(f"the ledger is at version {self._term.version}, but its steps lead to {self._version} only")
        if again:
            await self._snapshot()
        return len(again)

    async def _publish_again(self) -> None:
        """The weights that the ledger names may be gone with the machine's memory; what it names must exist."""
        version, name = await self._ledger.newest()
        if name is None:
            return
        try:
            self._weights.open(name)
        except WeightsDamaged:
            await self._publish(version, int(name.rpartition("-t")[2]))

    # ── run: one step after the other ────────────────────────────────────────────────────────────────────────────────

    async def _work(self) -> str:
        try:
            while self._version < self._config.total_steps:
                await self._step()
            if self._saved[-1] != self._version:  # the learner before died between its last step and its checkpoint
                await self._save({})
            await self._finish()
        except RunEnded as ended:
            await self._recorder.flush()
            kept = self._saved[-1] == self._version or self._ahead
            if str(ended) == "stopped" and not kept and await self._pausing():
                await self._save({})
            return str(ended)
        return "finished"

    async def _pausing(self) -> bool:
        return (await self._jobs.get(self._config.job_id)).status == "paused"

    async def _step(self) -> None:
        groups = await self._claims.next_batch(self._term, self._version)
        self._split.switch("busy")
        self._ahead = True
        result = await self._train(groups)
        await self._mismatch.look(result.measured.extra, self._version, str(self._trainer.policy.device))
        if self._stopping.is_set() and not await self._pausing():  # a pause keeps the step; its status came first
            raise RunEnded("stopped")
        self._split.switch("publish")
        weights = await self._publish(self._version + 1, self._term.number)
        self._split.switch("settle")
        await self._settle(groups, result, weights)
        await self._report_step(groups, result)  # before a state holds the step, from which nobody would train it again
        self._split.switch("snapshot")
        if self._version % max(1, self._settings.snapshot_every) == 0:
            await self._snapshot()
        await self._recorder.record(groups, result, self._version)
        every = self._settings.checkpoint_every(self._config.total_steps)
        if (
            self._version % every == 0
            or self._version == self._config.total_steps
            or await self._ledger.needs_checkpoint()
        ):
            self._split.switch("checkpoint")
            reward = summarise(groups).reward_mean
            await self._save({} if reward is None else {"train_mean_reward": reward})
        self._split.switch("groups")

    @property
    def _in_force(self) -> Hyperparameters:
        """The settings of the step to come. From its first claim on they are fixed."""
        return self._live.at(self._version)

    async def _train(self, groups: tuple[Group, ...] | list[Group]) -> StepResult:
        version, now = self._version, self._in_force
        order = Train(version, tuple(g.group_id for g in groups), now.max_staleness, now.peak_learning_rate)
        self._trainer.apply_settings(order.max_staleness, order.learning_rate)
        return await self._coordinator.run_on_all(order, lambda: self._trainer.step(groups, version))

    async def _publish(self, version: int, term: int) -> str:
        """Returns the name under which rollout workers find it."""
        write = self._trainer.policy.write_weights
        done = await self._durable.write(Publish(), lambda: self._weights.publish(version, term, write))
        await self._publications.add(done)
        return done.name

    async def _settle(self, groups: tuple[Group, ...], result: StepResult, weights: str) -> None:
        step = Step(
            version=self._version,
            groups=tuple(g.group_id for g in groups),
            ages=dict(sorted(result.counts.contributing.items())),
            masked_tokens=result.counts.masked.total(),
        )
        end_if_void(self._config.job_id, self._term, await self._ledger.settle(self._term, step, weights))
        self._version += 1
        self._ahead = False
        self._new_groups += len(groups)
        self._new_tokens += sum(step.ages.values())
        self._trained_tokens += sum(step.ages.values())

    async def _save(self, metrics: dict[str, float]) -> None:
        """Checkpoint, offer it, and let the ledger forget what two checkpoints now hold."""
        version = self._version
        await self._recorder.flush()
        path = await self._durable.save(Save(version), lambda: self._checkpoints.save(self._trainer, version))
        await self._announce(path, version, metrics)
        await self._ledger.forget_before(self._saved[-1])
        self._saved.append(version)
        await self._retention.apply()

    async def _snapshot(self) -> None:
        """Of a settled step. Without memory for it the job goes on with checkpoints alone, and says so once."""
        if (snapshots := self._snapshots) is None:
            return
        order = Snapshot(self._version)
        lacking = await self._coordinator.run_on_all(order, lambda: snapshots.begin(order.version))
        if lacking is not None:
            self._snapshots = None
            message = f"no snapshots are taken, only checkpoints: {lacking}"
            await self._jobs.emit_event(self._config.job_id, message, level="warn")

    async def _end_snapshots(self) -> None:
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.close)

    async def _announce(self, path: Path, version: int, metrics: dict[str, float]) -> None:
        """Once: the learner before may have died between writing a checkpoint and offering it."""
        if any(c.step == version for c in await self._jobs.checkpoints(self._config.job_id)):
            return
        name = model_name(await self._jobs.get(self._config.job_id), version)
        offered = Checkpoint(new_id("ftckpt_"), self._clock.time(), version, name, str(path), metrics)
        await self._jobs.add_checkpoint(self._config.job_id, offered)
        await self._jobs.emit_event(self._config.job_id, f"Checkpoint created at step {version} with name {name}")

    async def _finish(self) -> None:
        """The trained model, as a folder that is there whole or not at all. The last groups stay until the ledger is
        closed: a job that is paused just now may come back to a damaged checkpoint."""
        final = JobFolder(self._output).model
        shutil.rmtree(final, ignore_errors=True)
        with written_whole(final) as partial:
            await self._coordinator.run_on_all(WriteModel(), lambda: self._trainer.policy.write_model(partial))

    async def _report_step(self, groups: Sequence[Group], result: StepResult) -> None:
        """Of the step that made the present version, and of the time since the one before it was told."""
        job, seconds = self._config.job_id, self._seconds(result)
        metrics = step_metrics(groups, result, self._version, self._config.total_steps, seconds)
        await self._jobs.record(job, metrics)
        data = StepSummary.of(metrics, self._live.at(metrics.step - 1).max_staleness)
        await self._jobs.emit_event(job, event_message(metrics), type="metrics", data=data)
        await self._jobs.update(job, trained_tokens=self._trained_tokens)

    # ── heartbeat ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _seconds(self, result: StepResult) -> dict[str, float]:
        """Of one step, by stage."""
        now = self._split.seconds()
        spent, self._reported_seconds = {k: v - self._reported_seconds.get(k, 0.0) for k, v in now.items()}, now
        stages = {stage: spent.get(stage, 0.0) for stage in ("publish", "settle", "snapshot", "checkpoint")}
        waited = 0.0 if self._snapshots is None else self._snapshots.stalled
        stalled, self._waited = waited - self._waited, waited
        stages["snapshot"] += stalled
        train = result.train_seconds - stalled
        return {"wait": spent.get("groups", 0.0), "batch": result.batch_seconds, "train": train} | stages

    async def _beat_loop(self) -> str:
        while True:
            await self._beat()
            await self._coordinator.send_heartbeat()
            await asyncio.sleep(self._ports.heartbeat_seconds)

    async def _beat(self) -> None:
        waiting = self._split.seconds()
        busy = waiting.pop("busy", 0.0)
        metrics = WorkerMetrics(
            worker=self._config.worker,
            role="learner",
            time=self._clock.time(),
            version=self._version,
            uptime=self._split.uptime,
            busy=busy,
            waiting=waiting,
            tokens=self._new_tokens,
            groups=self._new_groups,
        )
        await self._jobs.record_heartbeat(self._config.job_id, metrics)
