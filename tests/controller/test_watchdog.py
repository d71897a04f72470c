"""The watchdog on a real ledger and job store; the tests play workers, and its look is called as often as it takes."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_controller.pause_reasons import Stalled
from headrace_controller.watchdog import Watchdog, describe_waits
from headrace_controller.workers.supervisor import WorkerSupervisor
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import TransitionOutcome
from headrace_core.types.metrics import WorkerMetrics
from headrace_core.types.staleness import Limits
from headrace_core.types.trajectory import Group, sampled_completion
from headrace_lab.services.jobs import stored_job

SOON, LATE = 6.0, 20.0
JOB = stored_job(status="running", total_steps=10)


def a_group(group_id: int) -> Group:
    """Of one completion of one token."""
    tokens, version = np.array([5], np.int32), np.zeros(1, np.int32)
    done = sampled_completion(tokens, np.array([-0.5], np.float32), version, "stop", reward=1.0)
    return Group(group_id, 1, 0, 0, np.array([1], np.int32), (done,))


class Worker:
    """A twin of a supervised worker: says what it is told to, and notes why it was ended."""

    def __init__(self, name: str) -> None:
        self.name, self.ready, self.working = name, True, True
        self.silence = 0.0
        self.ends: list[str] = []
        self.times_progressed = 0

    def progressed(self) -> None:
        self.times_progressed += 1

    def silent(self) -> float:
        return self.silence

    def end(self, reason: str) -> None:
        self.ends.append(reason)


class Job:
    """A watchdog over two workers, and a clock."""

    def __init__(self, redis: Redis) -> None:
        self.jobs, self.ledger, self.mending = JobStore(redis), Ledger(redis, JOB.id), RecoveryCounters(redis, JOB.id)
        self.learner, self.rollout = Worker("learner"), Worker("rollout-0")
        self.now = 1000.0
        self.evaluation: tuple[int, int] | None = None
        """How far the rollout worker is with one."""
        self.computed = {"learner": 0, "rollout-0": 0}
        """Tokens that each worker has computed."""
        settings = Settings(watchdog_seconds=SOON, stall_timeout=2 * LATE)
        self.dog = Watchdog(settings, JOB, self.jobs, self.ledger, self.mending, lambda: self.now)

    async def looks(self, seconds: int, held: bool = False, **doing: str) -> None:
        """One a second; `doing`: what each worker waits for."""
        doing = doing or {"learner": "groups", "rollout_0": "rewards"}
        for _ in range(seconds):
            self.now += 1.0
            for worker, what in doing.items():
                name = worker.replace("_", "-")
                beat = a_beat(name, self.now, what)
                if name == "rollout-0":
                    beat = msgspec.structs.replace(beat, evaluation=self.evaluation)
                beat = msgspec.structs.replace(beat, computed_tokens=self.computed[name])
                await self.jobs.record_heartbeat(JOB.id, beat)
            workers = cast("list[WorkerSupervisor]", [self.learner, self.rollout])
            await self.dog.check(workers, await self.ledger.counts(), held)

    async def told(self) -> list[tuple[str, dict[str, Any]]]:
        return [(e.message, e.data or {}) for _, e in await self.jobs.events(JOB.id) if e.level == "warn"]

    async def acts(self) -> dict[str, int]:
        return (await self.mending.counts())[0]


def a_beat(worker: str, now: float, what: str) -> WorkerMetrics:
    role = "learner" if worker == "learner" else "rollout"
    return WorkerMetrics(worker=worker, role=role, time=now, version=0, uptime=now, busy=0.0, waiting={what: now})


@pytest.fixture
async def job(redis: Redis) -> Job:
    job = Job(redis)
    await job.jobs.create(JOB)
    await job.ledger.open(Limits(max_staleness=1, batch_size=4, total_groups=40))
    return job


async def test_a_silent_worker_s_leases_are_issued_again_and_then_it_is_ended(job: Job) -> None:
    await job.ledger.admit("rollout-0", 0, 3, 60.0)
    job.rollout.silence = SOON / 2
    await job.looks(2)
    assert await job.acts() == {"reissue": 1}
    again = await job.ledger.admit("rollout-1", 0, 3, 60.0)
    assert [(lease.group_id, lease.attempt) for lease in again.leases] == [(0, 2), (1, 2), (2, 2)]
    job.rollout.silence = SOON
    await job.looks(1)
    assert job.rollout.ends == ["its process did not answer for 6 s"]
    assert job.learner.ends == []
    assert await job.acts() == {"reissue": 1, "restart": 1}
    (reissued, data), (ended, _) = await job.told()
    assert "3 of its leases are issued again" in reissued
    assert ended.startswith("rollout-0 is ended")
    assert data["act"] == "reissue"
    assert {w["who"]: w["for"] for w in data["waits"]}["rollout-0"] == "an answer of its process"


async def test_an_evaluation_that_comes_on_is_progress_and_one_that_begins_anew_is_not(job: Job) -> None:
    """It holds its worker back, which may take longer than a job may stand still."""
    await job.ledger.admit("rollout-0", 0, 3, 60.0)
    for completions in range(int(2 * LATE)):
        job.evaluation = (0, completions)
        await job.looks(1)
    assert await job.acts() == {}
    for completions in range(int(LATE) + 1):
        job.evaluation = (0, completions)
        await job.looks(1)
    assert await job.acts() == {"restart": 1}


async def test_a_group_that_is_sampled_for_longer_than_a_job_may_stand_still_is_left_in_peace(job: Job) -> None:
    """800 s is what 32,000 tokens take at 40 a second."""
    await job.ledger.admit("rollout-0", 0, 3, 60.0)
    for _ in range(800):
        job.computed["rollout-0"] += 1
        await job.looks(1)
    assert (await job.told(), await job.acts()) == ([], {})


async def test_tokens_beyond_what_a_group_can_have_count_no_longer(job: Job) -> None:
    """Groups that are sampled and lost, again and again, are a standstill."""
    await job.ledger.admit("rollout-0", 0, 3, 60.0)
    settings = Hyperparameters.model_validate(JOB.hyperparameters)
    job.computed["rollout-0"] = 1
    await job.looks(1)
    job.computed["rollout-0"] += 2 * settings.group_size * settings.max_tokens
    for _ in range(int(LATE) + 2):
        job.computed["rollout-0"] += 1000
        await job.looks(1)
    assert await job.acts() == {"restart": 1}


async def test_a_step_that_computes_tokens_may_take_any_time_and_one_that_does_not_is_ended(job: Job) -> None:
    for _ in range(int(4 * LATE)):
        job.computed["learner"] += 4096
        await job.looks(1, learner="busy", rollout_0="window")
    assert await job.acts() == {}
    await job.looks(int(LATE) + 1, learner="busy", rollout_0="window")
    assert job.learner.ends == ["no progress for 20 s, which others wait for"]


async def test_a_worker_that_answers_again_is_let_be(job: Job) -> None:
    for _ in range(2):
        job.rollout.silence = SOON / 2
        await job.looks(1)
        job.rollout.silence = 0.0
        await job.looks(1)
    assert await job.acts() == {"reissue": 2}
    assert job.rollout.ends == []


async def test_no_progress_is_told_then_acted_on_and_then_pauses_the_job(job: Job) -> None:
    await job.looks(int(SOON) + 1)
    ((message, data),) = await job.told()
    assert message.startswith("no progress for 6 s at version 0: learner waits for groups of rollout-0")
    assert [(w["who"], w["for"]) for w in data["waits"]] == [
        ("learner", "groups of rollout-0"), ("rollout-0", "its reward")
    ]  # fmt: skip
    await job.looks(int(LATE - SOON))
    assert (len(job.rollout.ends), len(job.learner.ends)) == (1, 0)
    assert await job.acts() == {"restart": 1}
    with pytest.raises(Stalled, match="rollout-0 waits for its reward") as stalled:
        await job.looks(int(LATE) + 1)
    assert (stalled.value.code, stalled.value.who) == ("stalled", "job")


async def test_a_lease_or_a_restart_is_no_progress_and_an_arrival_is(job: Job) -> None:
    await job.looks(int(SOON) - 1)
    (lease,) = (await job.ledger.admit("rollout-0", 0, 1, 60.0)).leases
    await job.looks(2)
    assert len(await job.told()) == 1
    assert await job.ledger.commit(lease, a_group(lease.group_id)) is TransitionOutcome.QUEUED
    await job.looks(int(SOON) + 1)
    assert len(await job.told()) == 2
    assert job.rollout.ends == []
    assert (job.rollout.times_progressed, job.learner.times_progressed) == (1, 1)


@pytest.mark.parametrize("outcome", [TransitionOutcome.GENERATION_FAILED, TransitionOutcome.REWARD_FAILED])
async def test_groups_that_fail_are_no_progress_however_many(job: Job, outcome: TransitionOutcome) -> None:
    """Rows that no engine can serve failed 900 groups a second, and nobody noticed that nothing was ever trained."""

    async def looks_while_groups_fail(seconds: int) -> None:
        for _ in range(seconds):
            (lease,) = (await job.ledger.admit("rollout-0", 0, 1, 60.0)).leases
            assert await job.ledger.fail(lease, outcome, "of no use") is outcome
            await job.looks(1)

    await looks_while_groups_fail(int(LATE) + 1)
    assert len(job.rollout.ends) == 1
    with pytest.raises(Stalled):
        await looks_while_groups_fail(int(LATE) + 1)
    assert job.rollout.times_progressed == 0


async def test_a_job_that_is_meant_to_stand_still_does(job: Job) -> None:
    await job.looks(int(2 * LATE), held=True)
    job.learner.working = False  # it starts, within a limit of its own
    await job.looks(int(2 * LATE))
    assert await job.told() == []


def test_a_job_without_a_heartbeat_is_said_to_have_none() -> None:
    assert describe_waits([]) == "no worker was heard of"
