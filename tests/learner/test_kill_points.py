"""A learner that is killed again and again arrives at the state of one that never was, bit for bit."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from headrace_core.ledger.records import TransitionOutcome
from headrace_core.protocols.worker import WorkerConfig
from headrace_learner.checkpoints import checkpoint
from headrace_learner.training.trainer import Trainer

from .bench import BATCH, Bench
from .cases import assert_same_state, random_group
from .kill_cases import be_learner

pytestmark = pytest.mark.slow

KILLS, STEPS, SEED = 20, 40, 6
IN_STEPS, IN_START = 3.5, 0.25
"""A life ends within so many steps of its start, by CPU time; this share of them during the start already."""
PRELOADED = ["headrace_learner.worker", "transformers.models.qwen3.modeling_qwen3"]
"""Once, by the server from which each life is forked."""
LONGEST_LIFE = 120.0
SETTINGS: dict[str, Any] = {
    "algorithm": "ppo",
    "minibatches": 2,
    "weight_decay": 0.1,
    "n_steps": STEPS,
    "checkpoint_interval": 3,
}


async def feed(job: Bench) -> None:
    """A batch for each version, once."""
    for version in range(STEPS):
        heard = "0"
        while (await job.ledger.newest())[0] < version:
            heard = await job.ledger.signal(heard, 0.1)
        for lease in (await job.ledger.admit("rollout-0", version, BATCH, 600)).leases:
            group = random_group(lease.group_id, (version,))
            assert await job.ledger.commit(lease, group) is TransitionOutcome.QUEUED


async def live(config: WorkerConfig, point: float | None, told: Path) -> int:
    """One process's life, until it has spent `point` CPU seconds, to the microsecond; returns its exit code."""
    process = multiprocessing.get_context("forkserver").Process(
        target=be_learner, args=(msgspec.msgpack.encode(config), str(told))
    )
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + LONGEST_LIFE
    while process.is_alive():
        assert time.monotonic() < deadline, "the learner did not end"
        if point is not None and spent(process.pid) > point:
            process.kill()
        await asyncio.sleep(0.001)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def spent(pid: int) -> float:
    """CPU seconds of all threads of a process; 0 of one that has ended."""
    try:
        return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


async def train(job: Bench, points: Iterable[float], told: Path) -> list[dict[str, Any]]:
    """Lives that end at these points, and one that must finish; returns what they told."""
    config = msgspec.structs.replace(job.config, total_steps=STEPS, stall_timeout=LONGEST_LIFE)
    await job.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(feed(job), name="feed")
        for point in points:
            assert await live(config, point, told) == -signal.SIGKILL
        assert await live(config, None, told) == 0
    return read(told)


def read(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()]


def draw(chance: np.random.Generator, start: float, step: float) -> list[float]:
    """CPU seconds at which lives end."""
    early, part = chance.random(KILLS) < IN_START, chance.random(KILLS)
    return [float(x) for x in np.where(early, part * start, start + part * IN_STEPS * step)]


def final(job: Bench, make_trainer: Callable[..., Trainer]) -> tuple[Trainer, torch.Tensor]:
    """The state after the last step, and the random state with it."""
    trainer = make_trainer(**SETTINGS)
    path = checkpoint.newest(job.output, STEPS).path
    assert path is not None
    assert path.name == f"step-{STEPS:08d}"
    checkpoint.load(trainer, path)
    return trainer, torch.get_rng_state()


@pytest.mark.timeout(600)
async def test_killed_at_twenty_points_with_snapshots_and_without(
    bench: Callable[..., Bench], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    calm = bench("calm", **SETTINGS)
    begun, ended = await train(calm, (), tmp_path / "calm.jsonl")
    expected, random_state = final(calm, make_trainer)
    chance = np.random.default_rng(SEED)
    for every in (1, 0):
        job = bench(f"killed-{every}", **SETTINGS, snapshot_every=every)
        points = draw(chance, begun["cpu"], (ended["cpu"] - begun["cpu"]) / STEPS)
        told = await train(job, points, tmp_path / f"{every}.jsonl")
        sources = {facts["from"].split()[0] for facts in told if "from" in facts}
        assert "snapshot" in sources if every else sources <= {"the", "checkpoint"}
        assert every or any(facts.get("replayed_steps") for facts in told)
        found, found_random = final(job, make_trainer)
        assert_same_state(found, expected)
        assert torch.equal(found_random, random_state)
        assert [s.groups for s in await job.ledger.steps()] == [s.groups for s in await calm.ledger.steps()]
        assert (await job.ledger.counts()).balanced
