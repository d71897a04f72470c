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
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headrace_core.activity_timer import ActivityTimer
from headrace_core.concurrency import cancel, first_to_end, taken_or_undone
from headrace_core.errors import InvalidState, TimedOut
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.ledger import Lease, Ledger, Refusal, TransitionOutcome
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import connect
from headrace_core.seeds import derived_seed
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.metrics import EvaluationMetrics, WorkerMetrics, WorkerState
from headrace_rewards.registry import build, validate
from headrace_rewards.sandbox.kernel import control_groups
from headrace_rewards.sandbox.level_probe import probe_level

from .completion_sampler import CompletionSampler, needs
from .engines import create
from .engines.engine import EngineConfig, RequestRefused
from .evaluation import Evaluator
from .group_builder import GroupBuilder
from .monitored_reward import MonitoredReward
from .prompts import Prompt, Tokenizer
from .reading import read_within_limits
from .reward_scoring import RewardFailed
from .weight_sync import SyncResult, WeightSync
from .worker_reporter import WorkerReporter

BEAT_SECONDS = 2.0
STOP_SECONDS = 10.0
PROBE_SECONDS, PROBE_LIMIT = 10.0, 60.0
"""How often the engine is asked whether it still works; its longest regular answer waits for one step to end."""
REWARD_BEATS = 2
"""Heartbeats between two reports of what the reward did."""
REFUSED_SECONDS, REFUSED_LONGEST = 0.05, 1.0
"""Wait after a row that the engine refused; it doubles with each in a row."""
SIGNAL_SECONDS = 1.0
"""Longest sleep of a loop that waits for a signal: a bound on the delay should a signal be missed, not a poll rate."""


class RolloutWorker:
    """See `headrace_core.protocols.worker.EvaluatingWorker`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._settings = config.settings
        self._redis = connect(config.redis_url, config.redis_wait)
        self._ledger = Ledger(self._redis, config.job_id)
        self._live = SettingsLog(self._redis, config.job_id, self._settings)
        self._drains = WorkerDrains(self._redis, config.job_id)
        self._jobs = JobStore(self._redis)
        self._telling = WorkerReporter(
            self._jobs, RecoveryCounters(self._redis, config.job_id), config.job_id, config.worker
        )
        self._grader = validate(config.grader)
        self._engine = create(self._settings.engine, self._engine_config())
        self._reward = build(config.grader, config.reward_rules)
        weights = WeightStore(Path(config.weights_root), config.job_id)
        self._follower = WeightSync(self._engine, self._ledger, weights, self._telling, config.start_timeout)
        self._watched = MonitoredReward(self._reward, self._grader, config.worker, self._settings)
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        """By token: a group that was lost may come back under a newer lease before the task of the older has ended."""
        self._unsettled: dict[str, Lease] = {}
        """By token, those neither committed nor failed nor lost: whose task has ended otherwise is to be given back."""
        self._errors: Counter[str] = Counter()
        self._tokens = self._groups = 0
        self._refused_in_a_row, self._admit_from = 0, 0.0
        """Rows that the engine refused since the last group; the moment before which nothing more is admitted."""
        self._refused: Refusal | None = None
        """Why the last admission gave nothing."""
        self._told: WorkerState = "starting"
        self._split = ActivityTimer("start")
        self._wake, self._news, self._stopping, self._idle = (asyncio.Event() for _ in range(4))
        self._idle.set()
        self._starting: asyncio.Task[dict[str, Any]] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._broken: asyncio.Queue[BaseException] = asyncio.Queue()

    def _engine_config(self) -> EngineConfig:
        s = self._settings
        return EngineConfig(
            model=Path(self._config.model_path),
            max_model_len=s.max_context,
            max_running=s.max_running,
            threads=self._config.threads,
            kv_cache_gib=s.kv_cache_gib,
            seed=derived_seed(s.seed, self._config.worker),  # workers must not sample the same completions
            update_mode=s.update_mode,
            lora_rank=s.lora_rank,
            distributions=any("distribution" in needs(self._grader, evaluating) for evaluating in (False, True)),
            start_timeout=self._config.start_timeout,
            update_timeout=self._config.update_timeout,
        )

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
        began = time.monotonic()
        await self._jobs.starts(self._config.job_id, self._config.worker, "rollout")
        self._tokenizer = Tokenizer(Path(self._config.model_path))
        longest = self._settings.max_context - self._settings.max_tokens
        train = await self._prompts(self._config.training_file, longest)
        self._held_out: list[Prompt] = []
        if self._config.validation_file is not None:
            held_out = await self._prompts(self._config.validation_file, longest)
            self._held_out = held_out[: self._settings.eval_samples]
        self._maker = GroupBuilder(
            self._engine, self._tokenizer, self._watched, train, self._settings, self._wake.set, self._grader
        )
        measurer = CompletionSampler(
            self._engine, self._tokenizer, self._grader, self._settings, self._held_out, evaluating=True
        )
        self._evaluator = Evaluator(
            *(self._follower, measurer, self._tokenizer, self._reward, self._held_out),
            max_tokens=self._settings.max_tokens,
            at_once=self._settings.max_running,
        )
        await asyncio.gather(self._engine.start(), self._reward.start())  # last: the rows may be refused
        await self._telling.tightest_row(self._maker.tightest, self._settings.max_tokens)
        await self._live.refresh()
        while not await self._catch_up():
            pass  # a few times in a row, then it raises
        await self._ledger.lapse(self._config.worker)  # of a process before this one, if it died
        self._split = ActivityTimer("window")
        sandbox = f"{(await probe_level()).level}, {control_groups.held()}"
        seconds = round(time.monotonic() - began, 1)
        return {"engine": self._settings.engine, "seconds": seconds, "prompts": len(train), "sandbox": sandbox}

    async def _prompts(self, file: str, longest: int) -> list[Prompt]:
        path = Path(file)
        return await read_within_limits(path, self._tokenizer, longest, self._config.fingerprints.get(path.name))

    async def run(self) -> str:
        """Until the ledger is closed or `stop` is called; returns `closed` or `stopped`."""
        loops = (
            self._admit_loop,
            self._listen_loop,
            self._follow_loop,
            self._renew_loop,
            self._beat_loop,
            self._drain_loop,
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
        await self._return_leases()
        await self._beat()
        await self._telling.reward(self._watched)

    async def _return_leases(self) -> None:
        """Another worker takes at once what this one held."""
        await cancel([task for _, task in self._held.values()])
        leases = [lease for token, lease in self._unsettled.items() if token not in self._held]
        await self._ledger.release(leases)
        self._forget(leases)  # only now: where a drain is cancelled in between, `_give_back` finds them

    def _forget(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._unsettled.pop(lease.token, None)

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
            await self._redis.aclose()

    async def evaluate(self, version: int) -> EvaluationMetrics:
        """See `EvaluatingWorker`. Raises `TimedOut` where `version` does not arrive within the stall limit."""
        evaluating = self._evaluator.evaluate(version, self._config.stall_timeout)
        # The evaluation of the base model comes before `run`, which else probes the engine.
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(evaluating), asyncio.create_task(self._probe_loop())]
        result: EvaluationMetrics
        result, failures = await first_to_end(tasks)
        await self._telling.evaluation_failures(result.step, failures, len(self._held_out))
        await self._telling.evaluation_refused(result.step, result.generation_failed, len(self._held_out))
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
            self._wake.set()

    async def _admit_loop(self) -> str:
        while True:
            self._wake.clear()
            free = max(self._settings.max_running - self._engine.running, 0) // self._live.newest.group_size
            if (free > 0 or self._engine.running == 0) and time.monotonic() >= self._admit_from:
                admission = await taken_or_undone(
                    self._ledger.admit(self._config.worker, self._engine.version, 1, self._config.lease_seconds),
                    lambda granted: self._ledger.release(granted.leases),
                )
                for lease in admission.leases:
                    self._hold(lease)
                    self._wake.set()  # one group a turn, so that the window spreads over all workers
                self._refused = admission.refusal
                if self._refused is Refusal.CLOSED:
                    return "closed"
            await asyncio.sleep(0)  # let the new requests reach the engine before its slots are counted again
            self._note_activity()
            if self._state != self._told:
                await self._beat()
            await self._wake.wait()

    async def _renew_loop(self) -> str:
        while True:
            await asyncio.sleep(self._config.lease_seconds / 3)
            held = list(self._held.values())  # one of these groups may be held under a newer lease by the answer
            lost = await self._ledger.renew([lease for lease, _ in held], self._config.lease_seconds)
            await cancel([task for lease, task in held if lease.group_id in lost])
            self._forget(lease for lease, _ in held if lease.group_id in lost)

    async def _follow_loop(self) -> str:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._catch_up()

    async def _beat_loop(self) -> str:
        while True:
            for _ in range(REWARD_BEATS):
                await asyncio.sleep(BEAT_SECONDS)
                await self._beat()
            await self._telling.reward(self._watched)

    async def _drain_loop(self) -> str:
        while True:
            await asyncio.sleep(SIGNAL_SECONDS)
            drain = await self._drains.of(self._config.worker)
            if drain is not None and self._held and time.time() >= drain.until:
                await self._return_leases()

    async def _probe_loop(self) -> str:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self._engine.probe(PROBE_LIMIT)

    async def _stop_loop(self) -> str:
        await self._stopping.wait()
        return "stopped"

    async def _broken_loop(self) -> str:
        raise await self._broken.get()

    # ── one group ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hold(self, lease: Lease) -> None:
        """Make its group, beside all else."""
        task = asyncio.create_task(self._make(lease), name=f"group-{lease.group_id}")
        self._unsettled[lease.token], self._held[lease.token] = lease, (lease, task)
        task.add_done_callback(lambda _: self._let_go(lease))

    def _let_go(self, lease: Lease) -> None:
        """Its task has ended, and may never have begun. A ledger at fault may have given two tasks one token."""
        self._held.pop(lease.token, None)
        self._wake.set()

    async def _make(self, lease: Lease) -> None:
        """Commit or fail one lease. What no group can mend (engine or Redis gone) ends `run`."""
        try:
            await self._committed_or_failed(lease)
            self._forget([lease])
        except Exception as error:
            self._broken.put_nowait(error)

    async def _committed_or_failed(self, lease: Lease) -> None:
        try:
            await self._live.refresh()
            group = await self._maker.make(lease, self._live.at(lease.version).group_size)
            await self._note_boundaries()
            if await self._ledger.commit(lease, group) is TransitionOutcome.QUEUED:
                self._refused_in_a_row = 0
                self._groups += 1
                self._tokens += group.sampled_tokens
            await self._telling.failures(self._watched)
        except RewardFailed as error:
            await self._telling.failures(self._watched)
            await self._ledger.fail(lease, TransitionOutcome.REWARD_FAILED, str(error))
        except RequestRefused as error:
            self._back_off()
            await self._telling.refused_row(lease.group_id, self._maker.prompt(lease), error, self._errors[error.code])
            self._errors[error.code] += 1
            await self._ledger.fail(lease, TransitionOutcome.GENERATION_FAILED, str(error))

    def _back_off(self) -> None:
        """A row was refused, which takes no time at all: let the next ones not follow as fast as they can fail."""
        delay = min(REFUSED_SECONDS * 2.0**self._refused_in_a_row, REFUSED_LONGEST)
        self._refused_in_a_row = min(self._refused_in_a_row + 1, 10)
        self._admit_from = time.monotonic() + delay
        asyncio.get_running_loop().call_later(delay, self._wake.set)

    async def _note_boundaries(self) -> None:
        """Count the reference answers that stand where the tokenizer would not cut; tell of the first."""
        first = not self._errors["unstable_boundary"]
        self._errors["unstable_boundary"] = self._maker.unstable_boundaries
        if first and self._errors["unstable_boundary"]:
            await self._telling.unstable_boundary()

    # ── weights and heartbeat ────────────────────────────────────────────────────────────────────────────────────────

    async def _catch_up(self) -> bool:
        """Apply the newest policy version. False: it was given up, and is to be tried again."""
        done = await self._follower.catch_up()
        if done is SyncResult.APPLIED:
            self._wake.set()
        if done is not SyncResult.CURRENT:
            self._news.set()  # a newer one may have come meanwhile
        return done is not SyncResult.GIVEN_UP

    @property
    def _state(self) -> WorkerState:
        if self._refused is not Refusal.DRAINED:
            return "running"
        return "draining" if self._held else "drained"

    def _note_activity(self) -> None:
        """Who is waited for while the engine is idle: a reward, or the learner (the pacing window is full)."""
        if self._engine.running:
            self._split.switch("busy")
        elif self._held:
            self._split.switch("rewards")
        else:
            self._split.switch("drained" if self._state == "drained" else "window")

    async def _beat(self) -> None:
        self._note_activity()
        self._told = self._state
        waiting = self._split.seconds()
        waiting.pop("busy", None)
        metrics = WorkerMetrics(
            worker=self._config.worker,
            role="rollout",
            state=self._told,
            time=time.time(),
            version=self._engine.version,
            uptime=self._split.uptime,
            busy=self._engine.busy_seconds,
            waiting=waiting,
            tokens=self._tokens,
            groups=self._groups,
            running=self._engine.running,
            evaluation=self._evaluator.progress,
            errors=self._errors | {f"reward_{kind}": count for kind, count in self._watched.failures.items()},
        )
        await self._jobs.beat(self._config.job_id, metrics)
