"""The learner: claims groups, trains on them, publishes the updated policy, settles the step.

    start   enlist (fences out the previous learner) ─► load the newest snapshot or checkpoint ─► replay later steps
    run     ┌─► claim ─► train ─► publish ─► settle ─► report ─► snapshot, checkpoint when due ─┐    heartbeat every
            │     ▲        all of torch in one thread            └ copied during the next step  │    two seconds
            │     └ waits for the ledger's signals                                              │
            └───────────────────────────────────────────────────────────────────────────────────┘
    stop    ends `run` between two of these stages; if the job pauses, after a checkpoint

Invariants: a step is settled with the name of weights that are already published, so the weights that the ledger names
can always be loaded; from the same snapshot or checkpoint and the same settled steps, a new learner arrives at the same
weights, bit for bit; the ledger forgets the groups of a step only when two checkpoints hold the step, so that nothing
is lost if one checkpoint is damaged; the completions of a step are recorded for reading after it is settled and before
a checkpoint holds it; a step is trained with the settings recorded for its version, both the first time and in a
replay, even if settings change while the job runs.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

from headrace_core.concurrency import first_to_end, while_moving
from headrace_core.errors import TimedOut
from headrace_core.ledger.records import Term
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import WorkerMetrics, WorkerState

from .checkpoints.checkpoint import NewestCheckpoint
from .ports import LearnerPorts
from .recovery import Recovery
from .step_loop import StepLoop


class LearnerWorker:
    """See `headrace_core.protocols.worker.Worker`."""

    def __init__(self, config: WorkerConfig, ports: LearnerPorts) -> None:
        """`ports` must have nothing loaded: `start` does that, and `stop` closes them."""
        self._config, self._ports = config, ports
        self._ledger, self._jobs = ports.job.ledger, ports.job.store
        self._coordinator, self._clock = ports.coordinator, ports.clock
        self._stopping, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._steps: StepLoop | None = None
        """None until the model is loaded."""

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """A learner with the real trainer and Redis."""
        return cls(config, LearnerPorts.from_config(config))

    @property
    def term(self) -> Term:
        """The term under which the learner claims and settles. Set by `start`."""
        return self._term

    # ── lifecycle ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> dict[str, Any]:
        """Enlist, load, replay. Returns the data of the worker's start event.

        Afterwards the policy is at the ledger's newest version, and its weights are published.
        """
        began = self._clock.monotonic()
        await self._jobs.record_worker_start(self._config.job_id, self._config.worker, "learner")
        self._term = await self._ledger.enlist()
        await self._coordinator.connect()
        (trainer, snapshots), checkpoint = await asyncio.gather(
            self._coordinator.run_local(lambda: self._ports.load(self._coordinator.ranks)),
            asyncio.to_thread(self._ports.checkpoints.newest, self._term.version),
        )
        loaded = self._clock.monotonic()
        live = self._ports.job.live_settings(self._config.settings)
        self._steps = steps = StepLoop(
            self._config, self._ports, live, self._term, (trainer, snapshots), self._stopping
        )
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._restore(steps, checkpoint), name="restore"),
            asyncio.create_task(self._heartbeat_loop(steps, "starting"), name="beat"),
        ]
        restored = await first_to_end(tasks)
        steps.begin()
        return {
            "device": str(trainer.policy.device),
            "parameters": trainer.policy.parameters,
            "threads": self._config.threads,
            "version": steps.version,
            "checkpoint": checkpoint.version,
            **restored,
            "model_seconds": round(loaded - began, 2),
            "seconds": round(self._clock.monotonic() - began, 2),
        }

    async def _restore(self, steps: StepLoop, checkpoint: NewestCheckpoint) -> dict[str, Any]:
        """Bring the policy to the ledger's newest version, and publish it. Returns its part of the start event's data.

        Heartbeats are sent meanwhile, because many steps may have to be replayed: who waits for this start sees in them
        that it moves.
        """
        began = self._clock.monotonic()
        recovery = Recovery(self._coordinator, self._ports.job, self._ports.checkpoints, self._term.version)
        await recovery.report("checkpoint passed over", checkpoint.passed_over)
        source = await steps.recover(recovery, checkpoint)
        restored = self._clock.monotonic()
        replayed_steps = await steps.replay(recovery, checkpoint)
        replayed = self._clock.monotonic()
        await steps.publish_again()
        return {
            "from": source,
            "replayed_steps": replayed_steps,
            "state_seconds": round(restored - began, 2),
            "replay_seconds": round(replayed - restored, 2),
        }

    async def run(self) -> str:
        """Train until all steps are done (`finished`), the ledger is closed (`closed`) or `stop` is called (`stopped`).

        Raises `TimedOut` if no batch is complete in time, and `InvalidState` if another learner has taken over.
        """
        assert self._steps is not None
        steps = self._steps
        self._idle.clear()
        tasks = [
            asyncio.create_task(steps.run(), name="work"),
            asyncio.create_task(self._heartbeat_loop(steps, "running"), name="beat"),
        ]
        try:
            ended = await first_to_end(tasks)
            await steps.end_snapshots()
            await self._coordinator.finish()
            return ended
        finally:
            self._idle.set()

    async def stop(self) -> None:
        """End `run` at the next stage, then close the thread of torch and the connections. Idempotent.

        Raises `TimedOut` if the stage in progress neither ends nor computes a token within the stall timeout.
        """
        self._stopping.set()
        await self._wait_until_idle()
        if self._steps is not None:
            await self._steps.close()
        await self._coordinator.close()
        await self._ports.job.close()

    async def _wait_until_idle(self) -> None:
        limit = self._config.stall_timeout
        try:
            await while_moving(self._idle.wait(), limit, self._computed_tokens, await self._computed_tokens())
        except TimeoutError as error:
            raise TimedOut(f"a training step neither ended nor computed a token within {limit:.0f} s") from error

    async def _computed_tokens(self) -> int:
        return 0 if self._steps is None else self._steps.computed_tokens

    async def _heartbeat_loop(self, steps: StepLoop, state: WorkerState) -> str:
        if state == "starting":  # most starts end sooner
            await asyncio.sleep(self._ports.heartbeat_seconds)
        while True:
            waiting = steps.timer.seconds()
            busy = waiting.pop("busy", 0.0)
            metrics = WorkerMetrics(
                worker=self._config.worker,
                role="learner",
                state=state,
                time=self._clock.time(),
                version=steps.version,
                uptime=steps.timer.uptime,
                busy=busy,
                waiting=waiting,
                tokens=steps.tokens,
                computed_tokens=steps.computed_tokens,
                groups=steps.groups,
            )
            await self._jobs.record_heartbeat(self._config.job_id, metrics)
            await self._coordinator.send_heartbeat()
            await asyncio.sleep(self._ports.heartbeat_seconds)
