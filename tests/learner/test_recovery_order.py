"""A new learner goes back to the newest whole snapshot, else the newest whole checkpoint, and says which."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace_core.errors import Damaged
from headrace_core.storage import snapshot_folder
from headrace_learner.worker import LearnerWorker

from .bench import STEPS, Bench, train_whole

AT = 3
"""Version at which learners die here: checkpoints hold 2, and snapshots all."""


async def died(job: Bench) -> None:
    """A learner has trained `AT` steps and was stopped while it waited for groups: no checkpoint holds the last."""
    await job.open()
    worker = LearnerWorker.from_config(job.config)
    await worker.start()
    running = asyncio.create_task(worker.run())
    await job.feed(AT)
    await worker.stop()
    assert await running == "stopped"


async def go_on(job: Bench) -> dict[str, Any]:
    """Another learner finishes the job; what its `start` said."""
    worker = LearnerWorker.from_config(job.config)
    facts = await worker.start()
    ended, _ = await asyncio.gather(worker.run(), job.feed(STEPS))
    assert ended == "finished"
    await worker.stop()
    return facts


async def warnings(job: Bench) -> list[str]:
    return [e.message for _, e in await job.jobs.events(job.job_id) if e.level == "warn"]


def memory(job: Bench) -> Path:
    return snapshot_folder.folder(Path(job.config.snapshots_root), job.job_id)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)


async def test_the_newest_whole_state_is_gone_back_to(bench: Callable[..., Bench]) -> None:
    calm = bench("calm", checkpoint_interval=2)
    await train_whole(calm)
    sources = {}
    for name in ("kept", "one damaged", "all damaged", "gone"):
        job = bench(name, checkpoint_interval=2)
        await died(job)
        files = sorted(memory(job).iterdir())  # of the versions 3 and 2
        assert [file.name for file in files] == ["rank-0-0", "rank-0-1"]
        for file in {"one damaged": files[:1], "all damaged": files}.get(name, []):
            damage(file)
        if name == "gone":
            snapshot_folder.remove(Path(job.config.snapshots_root), job.job_id)
        facts = await go_on(job)
        sources[name] = (facts["from"], facts["replayed_steps"], await warnings(job))
        expected, found = calm.model(), job.model()
        assert all(torch.equal(expected[tensor], found[tensor]) for tensor in expected)
    passed_over = [
        f"snapshot passed over: rank-0-{number}: its bytes are not those of version {version}"
        for number, version in ((0, 3), (1, 2))
    ]
    assert sources == {
        "kept": ("snapshot at version 3", 0, []),
        "one damaged": ("snapshot at version 2", 1, passed_over[:1]),
        "all damaged": ("checkpoint at version 2", 1, passed_over),
        "gone": ("checkpoint at version 2", 1, []),
    }


async def test_a_checkpoint_newer_than_the_ledger_is_passed_over_by_name(bench: Callable[..., Bench]) -> None:
    """As after a loss of power: the ledger is at 3, and a checkpoint of version 4 is there."""
    calm = bench("ahead-calm", checkpoint_interval=2)
    await train_whole(calm)
    job = bench("ahead", checkpoint_interval=2, snapshot_every=0)
    await died(job)
    lost = job.output / "checkpoints" / "step-00000004"
    shutil.copytree(calm.output / "checkpoints" / lost.name, lost)
    facts = await go_on(job)
    assert (facts["from"], facts["replayed_steps"], facts["version"]) == ("checkpoint at version 2", 1, AT)
    (told,) = await warnings(job)
    assert told.startswith("checkpoint passed over: step-00000004: the ledger has lost the steps to it")
    assert lost.with_name("step-00000004.ahead").is_dir()
    assert [c.step for c in await job.jobs.checkpoints(job.job_id)] == [6, 4, 2]
    expected, found = calm.model(), job.model()
    assert all(torch.equal(expected[tensor], found[tensor]) for tensor in expected)


async def test_where_the_ledger_lost_the_steps_too_the_error_says_what_is_lacking(bench: Callable[..., Bench]) -> None:
    job = bench("lost", checkpoint_interval=2, snapshot_every=0)
    await died(job)
    (job.output / "checkpoints" / "step-00000002" / "manifest.json").write_text("{")
    await job.ledger.forget_before(1)
    worker = LearnerWorker.from_config(job.config)
    with pytest.raises(Damaged, match=r"version 3 cannot be made again: .* version 0, .* step 0 no longer") as raised:
        await worker.start()
    assert "step-00000002: its manifest.json cannot be read" in raised.value.message
    await worker.stop()


async def test_a_job_without_room_for_snapshots_says_so_once_and_goes_on(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_learner.checkpoints.memory_snapshot._MAX_MEMORY_SHARE", 1e-9)
    job = bench("no room")
    await train_whole(job)
    (told,) = await warnings(job)
    assert told.startswith("no snapshots are taken, only checkpoints: no memory for snapshots of ")
    assert (await job.ledger.newest())[0] == STEPS
