"""The rollout worker: leases groups, generates completions, scores and commits them, and updates the engine's weights.

    run() supervises these tasks; when one ends, the others are cancelled (and its error, if any, is raised unchanged):

      admit      ledger.admit ──► one task per lease: engine ──► reward ──► ledger.commit
         ▲ woken by: a request ended, a group ended, new weights, a signal of the ledger
      listen     ledger.signal ──► wakes `admit` and `follow`
      follow     a newer policy version ──► engine.update, between two decode steps
      renew      renews leases after every third of their lifetime; a lost lease cancels its task
      heartbeat  reports the use of time every two seconds, and every few heartbeats what the reward did
      check      scores a fraction of the groups a second time, concurrently
      drain      gives back what a drained worker still holds when its time is up
      probe      asks the engine whether it still works; if it hangs, the worker ends
      broken     ends when a group's task fails with an error that affects all groups (the engine is gone)
      stop       ends when stop() is called

Invariants: a lease is taken only while the engine samples with the newest policy version known to the ledger, so that
none is taken while an evaluation keeps the engine at an older version, and groups in flight continue at that version;
every lease taken is committed, failed or given back, even if the worker is stopped before it receives the ledger's
answer; only if the process dies are its leases left to expire; a group has the size that is recorded for the policy
version of its lease.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

from headrace_core.activity_timer import ActivityTimer
from headrace_core.concurrency import first_to_end
from headrace_core.errors import InvalidState, TimedOut
from headrace_core.ledger.records import Lease, Refusal
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.metrics import EvaluationMetrics, WorkerMetrics, WorkerState
from headrace_rewards.registry import validate

from .completion_sampler import CompletionSampler
from .evaluation import Evaluator
from .group_builder import GroupBuilder
from .lease_pool import SIGNAL_SECONDS, LeasePool
from .leased_groups import LeasedGroups
from .monitored_reward import MonitoredReward
from .ports import RolloutPorts
from .prompts import Prompt
from .weight_sync import SyncResult, WeightSync
from .worker_reporter import WorkerReporter

STOP_SECONDS = 10.0
PROBE_SECONDS, PROBE_LIMIT = 10.0, 60.0
"""Interval of probes of the engine, and the time in which it must answer: a working engine answers after the current
decode step at the latest."""
HEARTBEATS_PER_REWARD_REPORT = 2
"""Heartbeats between two reports of what the reward did."""


class RolloutWorker:
    """See `headrace_core.protocols.worker.EvaluatingWorker`."""

    def __init__(self, config: WorkerConfig, ports: RolloutPorts) -> None:
        """`ports` must not be started: `start` does that, and `stop` closes them."""
        self._config, self._ports = config, ports
        self._settings, self._grader = config.settings, validate(config.grader)
        self._clock, self._engine, self._reward = ports.clock, ports.engine, ports.reward
        self._ledger, self._jobs = ports.job.ledger, ports.job.store
        self._live = ports.job.live_settings(self._settings)
        self._reporter = WorkerReporter(ports.job, config.worker, self._clock)
        self._weight_sync = WeightSync(
            self._engine, ports.job, ports.weights, self._reporter, config.start_timeout, self._clock
        )
        self._leases = LeasePool(config, ports.job, self._live, self._engine, self._make, self._clock)
        self._monitored_reward = MonitoredReward(self._reward, self._grader, config.worker, self._settings, self._clock)
        self._reported_state: WorkerState = "starting"
        self._timer = ActivityTimer("start", self._clock.monotonic)
        self._version_signal, self._stopping, self._idle = (asyncio.Event() for _ in range(3))
        self._idle.set()
        self._start_task: asyncio.Task[dict[str, Any]] | None = None
        self._stop_task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """A worker with the real engine, reward and Redis. Raises `InvalidRequest` for a grader that does not exist."""
        return cls(config, RolloutPorts.from_config(config))

    # ── lifecycle ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> dict[str, Any]:
        """Start the engine and the reward, read the data, and load the newest policy version.

        Returns the data of the worker's start event. Raises `InvalidState` if `stop` is called meanwhile.
        """
        self._start_task = asyncio.create_task(self._start(), name="start")
        try:
            return await self._start_task
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            raise InvalidState(f"{self._config.worker} was stopped while it started") from None

    async def _start(self) -> dict[str, Any]:
        began = self._clock.monotonic()
        await self._jobs.record_worker_start(self._config.job_id, self._config.worker, "rollout")
        tokenizer, max_prompt = self._ports.prompts.tokenizer, self._settings.max_context - self._settings.max_tokens
        train = await self._ports.prompts.read(self._config.training_file, max_prompt)
        self._held_out: list[Prompt] = []
        if self._config.validation_file is not None:
            held_out = await self._ports.prompts.read(self._config.validation_file, max_prompt)
            self._held_out = held_out[: self._settings.eval_samples]
        builder = GroupBuilder(
            *(
                self._engine,
                tokenizer,
                self._monitored_reward,
                train,
                self._settings,
                self._leases.wake.set,
                self._grader,
            ),
            clock=self._clock,
        )
        self._groups = LeasedGroups(
            self._ports.job, self._live, builder, self._leases, self._reporter, self._monitored_reward
        )
        sampler = CompletionSampler(
            self._engine, tokenizer, self._grader, self._settings, self._held_out, evaluating=True
        )
        self._evaluator = Evaluator(
            *(self._weight_sync, sampler, tokenizer, self._reward, self._held_out),
            max_tokens=self._settings.max_tokens,
            at_once=self._settings.max_running,
            clock=self._clock,
        )
        # last, because reading the rows may fail
        await asyncio.gather(self._engine.start(), self._reward.start())
        await self._reporter.tightest_row(builder.tightest, self._settings.max_tokens)
        await self._live.refresh()
        while not await self._catch_up():
            pass  # `catch_up` raises after a few failures in a row
        await self._ledger.expire_leases_of(self._config.worker)  # those of a previous process that died
        self._timer = ActivityTimer("window", self._clock.monotonic)
        sandbox = await self._ports.sandbox()
        seconds = round(self._clock.monotonic() - began, 1)
        return {"engine": self._settings.engine, "seconds": seconds, "prompts": len(train), "sandbox": sandbox}

    async def run(self) -> str:
        """Work until the ledger is closed or `stop` is called; returns `closed` or `stopped`."""
        loops = (
            self._admit_loop,
            self._listen_loop,
            self._follow_loop,
            self._leases.renew_loop,
            self._heartbeat_loop,
            self._leases.drain_loop,
            self._monitored_reward.run,
            self._probe_loop,
            self._broken_loop,
            self._stop_loop,
        )
        self._idle.clear()
        try:
            return await first_to_end([asyncio.create_task(loop(), name=loop.__name__) for loop in loops])
        finally:
            try:
                await self._give_back()
            finally:
                self._idle.set()

    async def _give_back(self) -> None:
        await self._leases.give_back()
        await self._send_heartbeat()
        await self._reporter.reward(self._monitored_reward)

    async def stop(self) -> None:
        """End `run`, which gives its leases back while the engine still runs; then close engine and reward. Idempotent.

        A start in progress is cancelled, and its engine's process ended.
        """
        if self._stop_task is None:
            self._stop_task = asyncio.create_task(self._shut_down(), name="end")
        await asyncio.shield(self._stop_task)  # `stop` is called twice at once if a job is cancelled while it pauses

    async def _shut_down(self) -> None:
        self._stopping.set()
        try:
            if self._start_task is not None and not self._start_task.done():
                self._start_task.cancel()
                await asyncio.wait([self._start_task], timeout=STOP_SECONDS)
            await asyncio.wait_for(self._idle.wait(), STOP_SECONDS)
        except TimeoutError as error:
            raise TimedOut(f"{self._config.worker} did not return its leases within {STOP_SECONDS:.0f} s") from error
        finally:
            await self._engine.close()
            await self._reward.close()
            await self._ports.job.close()

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """See `EvaluatingWorker`. Raises `TimedOut` if `version` does not arrive within the stall timeout."""
        evaluating = self._evaluator.evaluate(version, self._config.stall_timeout)
        # the base model is evaluated before `run` starts its probes of the engine, so it is probed here
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(evaluating), asyncio.create_task(self._probe_loop())]
        result: EvaluationMetrics
        result, failures = await first_to_end(tasks)
        await self._reporter.evaluation_failures(result.step, failures, len(self._held_out))
        await self._reporter.evaluation_refused(result.step, result.generation_failed, len(self._held_out))
        return result

    # ── loops ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen_loop(self) -> str:
        # Even a worker without leases calls the ledger at least every third of a lease's lifetime: if all were silent
        # for longer, the ledger would take it for an outage, in which leases do not age, so that the leases of dead
        # workers would never expire.
        last, timeout = "0", min(SIGNAL_SECONDS, self._config.lease_seconds / 3)
        while True:
            signal = await self._ledger.signal(last, timeout)
            if signal != last:
                last = signal
                self._version_signal.set()
            self._leases.wake.set()

    async def _admit_loop(self) -> str:
        while True:
            self._leases.wake.clear()
            await self._leases.admit()
            if self._leases.refusal is Refusal.CLOSED:
                return "closed"
            await asyncio.sleep(0)  # new requests must reach the engine before its free slots are counted again
            self._note_activity()
            if self._leases.state != self._reported_state:
                await self._send_heartbeat()
            await self._leases.wake.wait()

    async def _follow_loop(self) -> str:
        while True:
            await self._version_signal.wait()
            self._version_signal.clear()
            await self._catch_up()

    async def _heartbeat_loop(self) -> str:
        while True:
            for _ in range(HEARTBEATS_PER_REWARD_REPORT):
                await asyncio.sleep(self._ports.heartbeat_seconds)
                await self._send_heartbeat()
            await self._reporter.reward(self._monitored_reward)

    async def _probe_loop(self) -> str:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self._engine.probe(PROBE_LIMIT)

    async def _stop_loop(self) -> str:
        await self._stopping.wait()
        return "stopped"

    async def _broken_loop(self) -> str:
        raise await self._leases.broken.get()

    async def _make(self, lease: Lease) -> None:
        await self._groups.make(lease)

    # ── weights and heartbeat ─────────────────────────────────────────────────────────────────────────────────────────

    async def _catch_up(self) -> bool:
        """Load the newest policy version into the engine. False: it failed and has to be tried again."""
        result = await self._weight_sync.catch_up()
        if result is SyncResult.APPLIED:
            self._leases.wake.set()
        if result is not SyncResult.CURRENT:
            self._version_signal.set()  # there may be a newer version by now
        return result is not SyncResult.GIVEN_UP

    def _note_activity(self) -> None:
        """Switch the timer to `busy`, or to what an idle engine waits for: rewards, or the learner (full `window`)."""
        if self._engine.running:
            self._timer.switch("busy")
        elif self._leases.holds_any:
            self._timer.switch("rewards")
        else:
            self._timer.switch("drained" if self._leases.state == "drained" else "window")

    async def _send_heartbeat(self) -> None:
        self._note_activity()
        self._reported_state = self._leases.state
        waiting = self._timer.seconds()
        waiting.pop("busy", None)
        metrics = WorkerMetrics(
            worker=self._config.worker,
            role="rollout",
            state=self._reported_state,
            time=self._clock.time(),
            version=self._engine.version,
            uptime=self._timer.uptime,
            busy=self._engine.busy_seconds,
            waiting=waiting,
            tokens=self._groups.tokens,
            computed_tokens=self._engine.sampled_tokens,
            groups=self._groups.groups,
            running=self._engine.running,
            evaluation=self._evaluator.progress,
            errors=self._groups.errors
            | {f"reward_{kind}": count for kind, count in self._monitored_reward.failures.items()},
        )
        await self._jobs.record_heartbeat(self._config.job_id, metrics)
