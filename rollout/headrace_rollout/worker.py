"""The rollout worker: leases groups, generates, scores and commits them, and keeps its weights the newest.

    run() supervises these tasks; the first to end ends the others (an error is raised as it is):

      admit   ledger.admit ──► one task a lease: engine ──► reward ──► ledger.commit
         ▲ woken by: a request ended, a group ended, new weights, a signal of the ledger
      listen  ledger.signal ──► wakes `admit` and `follow`
      follow  a newer policy version ──► engine.update, between two decode steps
      renew   every third of a lease's life; a lost lease cancels its task
      beat    every two seconds: where the time went; every few, what the reward did
      check   a share of the groups is scored again, beside the others
      drain   a drained worker's time is up ──► what it still holds is given back
      probe   does the engine still answer? an engine that hangs ends the worker
      broken  ends when a group's task met an error that no group can mend (the engine is gone)
      stop    ends when stop() is called

Invariants: a lease is only taken while the engine samples with the newest policy version known to the ledger, so that
none is taken while an evaluation holds an older one, and what is in flight goes on with that one; every
lease taken is committed, failed or given back, also where the worker is stopped before it hears that it was given one,
unless the process dies, and then it expires; a group has the size that is on record for its lease's version.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

from headrace_core.activity_timer import ActivityTimer
from headrace_core.concurrency import first_to_end
from headrace_core.errors import InvalidState, TimedOut
from headrace_core.ledger.ledger import Lease, Refusal
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
"""How often the engine is asked whether it still works; its longest regular answer waits for one step to end."""
REWARD_BEATS = 2
"""Heartbeats between two reports of what the reward did."""


class RolloutWorker:
    """See `headrace_core.protocols.worker.EvaluatingWorker`."""

    def __init__(self, config: WorkerConfig, ports: RolloutPorts) -> None:
        """`ports` are not started yet: `start` does that, and `stop` closes them."""
        self._config, self._ports = config, ports
        self._settings, self._grader = config.settings, validate(config.grader)
        self._clock, self._engine, self._reward = ports.clock, ports.engine, ports.reward
        self._ledger, self._jobs = ports.job.ledger, ports.job.store
        self._live = ports.job.live_settings(self._settings)
        self._reporter = WorkerReporter(ports.job, config.worker, self._clock)
        self._weight_sync = WeightSync(
            self._engine, self._ledger, ports.weights, self._reporter, config.start_timeout, self._clock
        )
        self._leases = LeasePool(config, ports.job, self._live, self._engine, self._make, self._clock)
        self._watched = MonitoredReward(self._reward, self._grader, config.worker, self._settings, self._clock)
        self._reported_state: WorkerState = "starting"
        self._split = ActivityTimer("start", self._clock.monotonic)
        self._news, self._stopping, self._idle = (asyncio.Event() for _ in range(3))
        self._idle.set()
        self._starting: asyncio.Task[dict[str, Any]] | None = None
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """A worker of real parts. Raises `InvalidRequest` for a grader that does not exist."""
        return cls(config, RolloutPorts.from_config(config))

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> dict[str, Any]:
        """Start the engine and the reward, read the data, catch up with the newest policy version.

        Raises `InvalidState` where `stop` is called meanwhile.
        """
        self._starting = asyncio.create_task(self._start(), name="start")
        try:
            return await self._starting
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            raise InvalidState(f"{self._config.worker} was stopped while it started") from None

    async def _start(self) -> dict[str, Any]:
        began = self._clock.monotonic()
        await self._jobs.record_worker_start(self._config.job_id, self._config.worker, "rollout")
        tokenizer, longest = self._ports.prompts.tokenizer, self._settings.max_context - self._settings.max_tokens
        train = await self._ports.prompts.read(self._config.training_file, longest)
        self._held_out: list[Prompt] = []
        if self._config.validation_file is not None:
            held_out = await self._ports.prompts.read(self._config.validation_file, longest)
            self._held_out = held_out[: self._settings.eval_samples]
        builder = GroupBuilder(
            *(self._engine, tokenizer, self._watched, train, self._settings, self._leases.wake.set, self._grader),
            clock=self._clock,
        )
        self._groups = LeasedGroups(self._ports.job, self._live, builder, self._leases, self._reporter, self._watched)
        measurer = CompletionSampler(
            self._engine, tokenizer, self._grader, self._settings, self._held_out, evaluating=True
        )
        self._evaluator = Evaluator(
            *(self._weight_sync, measurer, tokenizer, self._reward, self._held_out),
            max_tokens=self._settings.max_tokens,
            at_once=self._settings.max_running,
            clock=self._clock,
        )
        await asyncio.gather(self._engine.start(), self._reward.start())  # last: the rows may be refused
        await self._reporter.tightest_row(builder.tightest, self._settings.max_tokens)
        await self._live.refresh()
        while not await self._catch_up():
            pass  # a few times in a row, then it raises
        await self._ledger.expire_leases_of(self._config.worker)  # of a process before this one, if it died
        self._split = ActivityTimer("window", self._clock.monotonic)
        sandbox = await self._ports.sandbox()
        seconds = round(self._clock.monotonic() - began, 1)
        return {"engine": self._settings.engine, "seconds": seconds, "prompts": len(train), "sandbox": sandbox}

    async def run(self) -> str:
        """Until the ledger is closed or `stop` is called; returns `closed` or `stopped`."""
        loops = (
            self._admit_loop,
            self._listen_loop,
            self._follow_loop,
            self._leases.renew_loop,
            self._beat_loop,
            self._leases.drain_loop,
            self._watched.run,
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
        await self._beat()
        await self._reporter.reward(self._watched)

    async def stop(self) -> None:
        """End `run`, which gives its leases back while the engine still lives, then engine and reward. Idempotent.

        A start under way is given up: by that, too, no process is left of its engine.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="end")
        await asyncio.shield(self._ending)  # of a job cancelled while it pauses, it is asked for twice at once

    async def _end(self) -> None:
        self._stopping.set()
        try:
            if self._starting is not None and not self._starting.done():
                self._starting.cancel()
                await asyncio.wait([self._starting], timeout=STOP_SECONDS)
            await asyncio.wait_for(self._idle.wait(), STOP_SECONDS)
        except TimeoutError as error:
            raise TimedOut(f"{self._config.worker} did not return its leases within {STOP_SECONDS:.0f} s") from error
        finally:
            await self._engine.close()
            await self._reward.close()
            await self._ports.job.close()

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """See `EvaluatingWorker`. Raises `TimedOut` where `version` does not arrive within the stall limit."""
        evaluating = self._evaluator.evaluate(version, self._config.stall_timeout)
        # The evaluation of the base model comes before `run`, which else probes the engine.
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(evaluating), asyncio.create_task(self._probe_loop())]
        result: EvaluationMetrics
        result, failures = await first_to_end(tasks)
        await self._reporter.evaluation_failures(result.step, failures, len(self._held_out))
        await self._reporter.evaluation_refused(result.step, result.generation_failed, len(self._held_out))
        return result

    # ── the loops ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen_loop(self) -> str:
        # Also a worker without a lease speaks at least every third of one: a longer silence of all counts as an outage,
        # which takes nothing off any lease, so that those of the dead would never expire.
        last, longest = "0", min(SIGNAL_SECONDS, self._config.lease_seconds / 3)
        while True:
            heard = await self._ledger.signal(last, longest)
            if heard != last:
                last = heard
                self._news.set()
            self._leases.wake.set()

    async def _admit_loop(self) -> str:
        while True:
            self._leases.wake.clear()
            await self._leases.admit()
            if self._leases.refusal is Refusal.CLOSED:
                return "closed"
            await asyncio.sleep(0)  # let the new requests reach the engine before its slots are counted again
            self._note_activity()
            if self._leases.state != self._reported_state:
                await self._beat()
            await self._leases.wake.wait()

    async def _follow_loop(self) -> str:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._catch_up()

    async def _beat_loop(self) -> str:
        while True:
            for _ in range(REWARD_BEATS):
                await asyncio.sleep(self._ports.heartbeat_seconds)
                await self._beat()
            await self._reporter.reward(self._watched)

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

    # ── weights and heartbeat ────────────────────────────────────────────────────────────────────────────────────────

    async def _catch_up(self) -> bool:
        """Apply the newest policy version. False: it was given up, and is to be tried again."""
        done = await self._weight_sync.catch_up()
        if done is SyncResult.APPLIED:
            self._leases.wake.set()
        if done is not SyncResult.CURRENT:
            self._news.set()  # a newer one may have come meanwhile
        return done is not SyncResult.GIVEN_UP

    def _note_activity(self) -> None:
        """Who is waited for while the engine is idle: a reward, or the learner (the pacing window is full)."""
        if self._engine.running:
            self._split.switch("busy")
        elif self._leases.holds_any:
            self._split.switch("rewards")
        else:
            self._split.switch("drained" if self._leases.state == "drained" else "window")

    async def _beat(self) -> None:
        self._note_activity()
        self._reported_state = self._leases.state
        waiting = self._split.seconds()
        waiting.pop("busy", None)
        metrics = WorkerMetrics(
            worker=self._config.worker,
            role="rollout",
            state=self._reported_state,
            time=self._clock.time(),
            version=self._engine.version,
            uptime=self._split.uptime,
            busy=self._engine.busy_seconds,
            waiting=waiting,
            tokens=self._groups.tokens,
            groups=self._groups.groups,
            running=self._engine.running,
            evaluation=self._evaluator.progress,
            errors=self._groups.errors | {f"reward_{kind}": count for kind, count in self._watched.failures.items()},
        )
        await self._jobs.record_heartbeat(self._config.job_id, metrics)
