"""A learner whose disk is full: it names the folder, leaves nothing half-written, waits, and goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_core.errors import DiskFull
from headrace_core.jobs.history import EVENTS, event_of
from headrace_core.jobs.job_record import JobRecord
from headrace_core.jobs.job_store import JobStore
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.job import Job
from headrace_lab.services.jobs import worker_config
from headrace_learner.checkpoints import checkpoint
from headrace_learner.distributed.rank_commands import Save
from headrace_learner.distributed.rank_coordinator import RankCoordinator
from headrace_learner.durable_writes import DurableWriter
from headrace_learner.training.trainer import Trainer

from .cases import random_group

JOB = "ftjob-room"


def config(redis: Redis, wait: float, folder: Path) -> WorkerConfig:
    return worker_config(JOB, "learner", redis_wait=wait, output_dir=str(folder), total_steps=9)


async def told(jobs: JobStore) -> list[str]:
    return [event_of(JOB, entry).message for entry in await jobs.history.after(JOB, 0, 99, EVENTS)]


async def test_a_checkpoint_waits_for_room_and_is_then_whole(
    redis: Redis, make_trainer: Callable[..., Trainer], small_disk: Path
) -> None:
    trainer = make_trainer(batch_size=4, group_size=4)
    trainer.step([random_group(i, (0,)) for i in range(4)], 0)
    jobs, settings = JobStore(redis), config(redis, 20.0, small_disk)
    await jobs.create(Job(id=JOB, created_at=1.0, model="m", model_path="/m", training_file="f"))
    lead = RankCoordinator(settings, redis)
    room = DurableWriter(lead, JobRecord.on(redis, JOB), settings, retry_seconds=0.05)
    in_the_way = small_disk / "in-the-way"
    in_the_way.write_bytes(bytes(1_000_000))

    saving = asyncio.create_task(room.save(Save(1), lambda: checkpoint.save(trainer, small_disk, 1)))
    async with asyncio.timeout(20):
        await jobs.history.after(JOB, 0, 1, EVENTS, block=10.0)
        await asyncio.sleep(0.2)  # some tries more
        assert not saving.done()
        in_the_way.unlink()
        path = await saving
    message, *others = await told(jobs)
    assert others == []
    assert message.startswith(f"no room in {small_disk}/checkpoints/step-00000001.partial: ")
    assert message.endswith("learner waits 20 s for room")
    assert checkpoint.newest(small_disk, 1).path == path
    await lead.close()


@pytest.mark.parametrize("found", ["before", "while it is written"])
async def test_without_room_it_ends_with_the_reason_and_the_last_checkpoint_stays(
    redis: Redis, make_trainer: Callable[..., Trainer], small_disk: Path, found: str
) -> None:
    trainer = make_trainer(batch_size=4, group_size=4)
    whole = checkpoint.save(trainer, small_disk, 1)
    size = sum(f.stat().st_size for f in whole.rglob("*"))
    left = 8192 if found == "before" else size - 40_000
    (small_disk / "in-the-way").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - left)))
    jobs, settings = JobStore(redis), config(redis, 0.2, small_disk)
    await jobs.create(Job(id=JOB, created_at=1.0, model="m", model_path="/m", training_file="f"))
    lead = RankCoordinator(settings, redis)
    room = DurableWriter(lead, JobRecord.on(redis, JOB), settings, retry_seconds=0.05)
    with pytest.raises(DiskFull, match=r"bytes are needed, [\d,]+ are free"):
        await room.save(Save(2), lambda: checkpoint.save(trainer, small_disk, 2))
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == [whole.name]
    assert checkpoint.newest(small_disk, 2).path == whole
    await lead.close()
