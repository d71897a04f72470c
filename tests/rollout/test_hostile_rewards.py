"""A reward that misbehaves in every way it can, by row, in a worker that goes on: each group ends as its row says."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger
from headrace_core.storage.dataset import PromptOrder, read_rows
from headrace_core.storage.weight_store import WeightStore
from headrace_lab.paths import ADDER
from headrace_lab.waiting import wait_until_async

from .test_worker import JOB, SETTINGS, Start, jobs, ledger, queued, start, train_one_step

__all__ = ["jobs", "ledger", "start"]  # fixtures

MIXED = """
import os, time

def mixed(sample, item):
    kind = int(item["answer"]) % 8
    if kind == 0:
        raise ValueError("no opinion of " + item["answer"])
    if kind == 1:
        os._exit(7)
    if kind == 2:
        return float("nan")
    if kind == 3:
        print("x" * 30_000_000)
    if kind == 4:
        time.sleep(30)
    if kind == 5:
        return 1e300
    return len(sample["output_text"]) / 100
"""
KINDS = {0: "exception", 1: "crashed", 2: "invalid_value", 3: "bad_output", 4: "timeout", 5: "invalid_value"}
STEPS = 5


@pytest.mark.slow
async def test_every_group_ends_as_the_reward_of_its_row_does(
    start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    (tmp_path / "mixed.py").write_text(MIXED)
    grader = {"type": "function", "name": "mixed", "function": f"{tmp_path / 'mixed.py'}:mixed", "timeout": 1.0}
    worker = await start(grader=grader, reward_attempts=1, reward_recheck=0.0)
    run, store = asyncio.create_task(worker.run()), WeightStore(tmp_path / "weights", JOB)
    order, rows = PromptOrder(3000, SETTINGS.seed), read_rows(ADDER / "train.jsonl")

    async def step_is_queued() -> bool:
        return await queued(ledger) >= SETTINGS.batch_size

    trained: set[int] = set()
    for step in range(STEPS):
        await wait_until_async(step_is_queued, f"the groups of step {step}")
        trained |= {group.group_id for group in await train_one_step(ledger, store)}
    await worker.stop()
    assert await asyncio.wait_for(run, 30) == "stopped"

    counts = await ledger.counts()
    assert counts.balanced
    assert counts.states["trained"] == STEPS * SETTINGS.batch_size
    ends = {group: (await ledger.history(group))[-1].state for group in range(counts.admitted)}
    assert Counter(ends.values()) == +Counter(counts.states)
    kinds = {group: KINDS.get(int(rows[order.row(group)].item["answer"]) % 8) for group in ends}
    failed = {group for group, state in ends.items() if state == "reward_failed"}
    assert {kinds[group] for group in trained} == {None}
    assert {kinds[group] for group in failed} == set(KINDS.values())
    (found,) = await jobs.rewards(JOB)
    assert found.groups == found.completions / SETTINGS.group_size >= len(failed) + len(trained)
    expected = Counter(str(kinds[group]) for group in failed)
    for kind, count in expected.items():  # when it was stopped, one may have been scored that had not ended yet
        assert SETTINGS.group_size * count <= found.failures[kind] <= SETTINGS.group_size * (count + 4)
    told = Counter(event.data["kind"] for _, event in await jobs.events(JOB) if event.data and "kind" in event.data)
    assert told.total() == 5
    assert told <= expected
