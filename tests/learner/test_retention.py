"""Of a job's checkpoints the newest and the best are kept, and what another job began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Checkpoint, Job
from headrace_core.types.metrics import EvaluationMetrics
from headrace_learner.checkpoints.retention import Retention, best_of

JOB = "ftjob-kept"


def folder_of(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def of_step(step: int, output: Path, reward: float | None = None) -> Checkpoint:
    metrics = {} if reward is None else {"train_mean_reward": reward}
    return Checkpoint(f"ftckpt_{step}", 0.0, step, f"ft:m:{step}", str(folder_of(output, step)), metrics)


@pytest.fixture
async def jobs(redis: Redis) -> JobStore:
    jobs = JobStore(redis)
    await jobs.create(Job(id=JOB, created_at=0.0, model="m", model_path="/m", training_file="f", status="running"))
    return jobs


async def saved(jobs: JobStore, output: Path, step: int, reward: float | None = None) -> None:
    (folder_of(output, step) / "model").mkdir(parents=True)
    await jobs.add_checkpoint(JOB, of_step(step, output, reward))


async def evaluated(jobs: JobStore, step: int, reward: float | None) -> None:
    figures: dict[str, Any] = {"time": 0.0, "seconds": 0.0, "samples": 1, "components": {}, "reward_failed": 0}
    await jobs.record(JOB, EvaluationMetrics(step=step, reward_mean=reward, completion_length=1.0, **figures))


async def kept(jobs: JobStore, output: Path) -> list[int]:
    """Steps; those that are offered are those on the disk."""
    offered = [c.step for c in await jobs.checkpoints(JOB)]
    on_disk = sorted((int(f.name.removeprefix("step-")) for f in (output / "checkpoints").iterdir()), reverse=True)
    assert offered == on_disk
    return offered


async def test_the_newest_and_the_best_are_kept(jobs: JobStore, tmp_path: Path) -> None:
    retention = Retention(jobs, JOB, tmp_path, keep=2, interval=1)
    rewards = {1: 0.1, 2: 0.9, 3: 0.5, 4: None, 5: 0.6}
    for step, reward in rewards.items():
        await saved(jobs, tmp_path, step, reward=1.0 - step / 10)  # of training: it does not count beside evaluations
        await evaluated(jobs, step, reward)
        await retention.apply()
    assert await kept(jobs, tmp_path) == [5, 4, 2]
    told = [event.message for _, event in await jobs.events(JOB)]
    assert told == [
        "removed the checkpoint of step 1: the 2 newest and the best one are kept",
        "removed the checkpoint of step 3: the 2 newest and the best one are kept",
    ]
    await saved(jobs, tmp_path, 6)
    await evaluated(jobs, 6, 0.95)  # the best is among the newest now
    await retention.apply()
    assert await kept(jobs, tmp_path) == [6, 5]


async def test_fewer_are_left_alone(jobs: JobStore, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        await saved(jobs, tmp_path, step)
    await Retention(jobs, JOB, tmp_path, keep=3, interval=1).apply()
    assert await kept(jobs, tmp_path) == [30, 20, 10]
    assert await jobs.events(JOB) == []


async def test_what_an_unfinished_job_began_with_is_kept_until_it_ends(jobs: JobStore, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        await saved(jobs, tmp_path, step)
    path = str(folder_of(tmp_path, 1) / "model")
    fork = Job(id="ftjob-fork", created_at=1.0, model="m", model_path=path, training_file="f", status="queued")
    await jobs.create(fork)
    retention = Retention(jobs, JOB, tmp_path, keep=2, interval=1)
    await retention.apply()
    assert await kept(jobs, tmp_path) == [4, 3, 1]
    await jobs.move("ftjob-fork", "cancelled")
    await retention.apply()
    assert await kept(jobs, tmp_path) == [4, 3]


async def test_what_a_learner_before_did_not_come_to_delete_is_deleted(jobs: JobStore, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        await saved(jobs, tmp_path, step)
    await jobs.remove_checkpoint(JOB, 1)  # and then it died
    folder_of(tmp_path, 5).mkdir()  # written, and not offered yet
    (tmp_path / "checkpoints" / "step-00000002.partial").mkdir()  # it died in the middle of a removal before
    await Retention(jobs, JOB, tmp_path, keep=2, interval=1).apply()
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003", "step-00000004", "step-00000005"
    ]  # fmt: skip


def test_the_best_without_evaluations_is_that_of_training(tmp_path: Path) -> None:
    offered = [of_step(step, tmp_path, reward) for step, reward in ((4, 0.3), (3, 0.7), (2, 0.7), (1, None))]
    best = best_of(offered, {}, 1)
    assert best is not None
    assert best.step == 3  # the newest of equals
    assert best_of(offered, {1: -1.0}, 1) is offered[-1]
    assert best_of(offered[-1:], {}, 1) is None


def test_an_evaluation_of_a_later_version_counts_for_the_checkpoint_before_it(tmp_path: Path) -> None:
    offered = [of_step(step, tmp_path, step / 100) for step in (40, 33, 30, 20)]  # 33: saved at a pause

    def best(evaluated: dict[int, float]) -> int | None:
        found = best_of(offered, evaluated, interval=10)
        return None if found is None else found.step

    assert best({23: 0.9, 34: 0.5, 41: 0.2}) == 20
    assert best({13: 0.9, 34: 0.5}) == 30, "the checkpoint of step 10 is gone: its evaluation speaks for no other one"
    assert best({20: 0.1, 23: 0.9, 34: 0.5}) == 30, "its own version's evaluation goes first"
    assert best({22: 0.4, 28: 0.9, 31: 0.5}) == 30, "then the nearest one's"
    assert best({13: 0.9}) == 40, "the best in training"
