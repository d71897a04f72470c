"""Restarts have a growing delay and an end, and come back to a worker that worked."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from ray.exceptions import RayActorError
from redis.asyncio import Redis

from headrace_controller.pause_reasons import RestartsExhausted
from headrace_controller.workers import supervisor as supervisor_module
from headrace_controller.workers.supervisor import WorkerSupervisor
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.restart_budget import Restart, RestartBudget
from headrace_lab.services.jobs import heartbeat, worker_config


def test_the_delay_doubles_up_to_its_longest_until_all_are_used_up() -> None:
    restarts = RestartBudget(max_restarts=7, window=600.0)
    found = [restarts.next(worked=0.0) for _ in range(8)]
    assert [r and r.delay for r in found] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, None]
    assert found[2] == Restart(3, 7, 4.0)


def test_a_worker_that_worked_long_enough_has_all_of_them_again() -> None:
    restarts = RestartBudget(max_restarts=2, window=600.0)
    assert [restarts.next(0.0), restarts.next(599.9), restarts.next(599.9)] == [
        Restart(1, 2, 1.0), Restart(2, 2, 2.0), None
    ]  # fmt: skip
    assert restarts.next(600.0) == Restart(1, 2, 1.0)


def test_without_any_the_first_failure_is_the_last() -> None:
    assert RestartBudget(max_restarts=0, window=1.0).next(worked=5.0) is None


class ShortLived:
    """A process that works for a tenth of a second, and dies."""

    async def start(self) -> dict[str, Any]:
        return {}

    async def ping(self) -> None: ...

    async def run(self) -> str:
        await asyncio.sleep(0.1)
        raise RayActorError

    async def call(self, method: str, *arguments: Any) -> Any: ...

    async def stop(self) -> None: ...

    def kill(self) -> None: ...


@pytest.mark.parametrize(("progresses", "deaths"), [(False, 2), (True, 4)])
async def test_restarts_come_back_only_where_the_job_got_on(redis: Redis, progresses: bool, deaths: int) -> None:
    """A worker that works for as long as it takes, and of no use to anybody, was started again for ever."""
    config = worker_config("ftjob-restarts")
    started = 0

    def launch(_: WorkerConfig) -> Any:
        nonlocal started
        started += 1
        if progresses and started < deaths:  # the last one makes none
            asyncio.get_running_loop().call_soon(supervisor.progressed)
        return ShortLived()

    restarts = RestartBudget(1, window=0.05, first=0.01)
    supervisor = WorkerSupervisor(config, launch, JobStore(redis), RecoveryCounters(redis, config.job_id), restarts)
    begin = asyncio.Event()
    begin.set()
    with pytest.raises(RestartsExhausted, match="used up its restarts"):
        await asyncio.wait_for(supervisor.run(begin), 20)
    assert started == deaths


class Slow(ShortLived):
    """A learner whose start and stop take a second. With `computes`, its heartbeats count tokens meanwhile."""

    def __init__(self, config: WorkerConfig, jobs: JobStore, computes: bool) -> None:
        self._config, self._jobs, self._computes = config, jobs, computes
        self.stopped = False

    async def start(self) -> dict[str, Any]:
        await self._work()
        return {}

    async def run(self) -> str:
        await asyncio.sleep(60)
        return "finished"

    async def stop(self) -> None:
        await self._work()
        self.stopped = True

    async def _work(self) -> None:
        for tokens in range(1, 21):
            beat = heartbeat(self._config.worker, computed_tokens=tokens if self._computes else 0)
            await self._jobs.record_heartbeat(self._config.job_id, beat)
            await asyncio.sleep(0.05)


def slow_supervisor(redis: Redis, computes: bool, limit: float) -> tuple[WorkerSupervisor, list[Slow]]:
    jobs = JobStore(redis)
    config = msgspec.structs.replace(worker_config("ftjob-slow"), worker="learner", start_timeout=limit)
    processes: list[Slow] = []

    def launch(given: WorkerConfig) -> Any:
        processes.append(Slow(given, jobs, computes))
        return processes[-1]

    restarts, recoveries = RestartBudget(0, window=60.0), RecoveryCounters(redis, config.job_id)
    return WorkerSupervisor(config, launch, jobs, recoveries, restarts), processes


async def test_a_start_may_take_as_long_as_it_computes_tokens(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that replays many steps was killed over and over, until it had no restart left."""
    monkeypatch.setattr(supervisor_module, "START_MARGIN_SECONDS", 0.0)
    supervisor, _ = slow_supervisor(redis, computes=True, limit=0.3)
    running = asyncio.create_task(supervisor.run(asyncio.Event()))
    await asyncio.wait_for(supervisor.until_ready(), 20)
    running.cancel()
    idle, _ = slow_supervisor(redis, computes=False, limit=0.3)
    with pytest.raises(RestartsExhausted, match="was not ready within 0 s"):
        await asyncio.wait_for(idle.run(asyncio.Event()), 20)


@pytest.mark.parametrize("computes", [True, False])
async def test_a_stop_may_take_as_long_as_the_step_in_progress_computes_tokens(redis: Redis, computes: bool) -> None:
    supervisor, processes = slow_supervisor(redis, computes, limit=20.0)
    running = asyncio.create_task(supervisor.run(asyncio.Event()))
    await asyncio.wait_for(supervisor.until_ready(), 20)
    await supervisor.stop(0.3, while_computing=True)
    running.cancel()
    assert processes[0].stopped == computes
