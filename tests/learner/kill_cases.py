"""A learner in a process of its own, which somebody kills; see `test_kill_points`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers.utils.logging import disable_progress_bar

from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.trajectory import Group
from headrace_learner.training.trainer import StepResult, Trainer
from headrace_learner.worker import LearnerWorker


def be_learner(config: bytes, told: str) -> None:
    """Its whole life. Appends to the file `told` what `start` said, and at the end; each with the CPU seconds spent."""
    torch.set_num_threads(1)
    disable_progress_bar()  # it takes a semaphore, which whoever is killed leaves behind
    asyncio.run(_live(msgspec.msgpack.decode(config, type=WorkerConfig), Path(told)))


async def _live(config: WorkerConfig, told: Path) -> None:
    _use_chance()
    worker = LearnerWorker.from_config(config)
    _report(told, await worker.start())
    assert await worker.run() == "finished"
    await worker.stop()
    _report(told, {})


def _use_chance() -> None:
    """Each step draws from torch's random state, so that its restoring is of consequence."""
    step = Trainer.step

    def with_chance(self: Trainer, groups: Sequence[Group], version: int) -> StepResult:
        torch.rand(3)
        return step(self, groups, version)

    Trainer.step = with_chance  # type: ignore[method-assign]


def _report(file: Path, what: dict[str, Any]) -> None:
    with file.open("a") as out:
        out.write(json.dumps({**what, "cpu": time.process_time()}) + "\n")
