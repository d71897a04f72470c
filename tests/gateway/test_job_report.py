"""The report of a job: made of everything that its routes answer, however many pages that is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from headrace_core.jobs.history import History
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.metrics import RewardMetrics
from headrace_lab.reports.job_report import Record, steady_shares, write_report
from headrace_lab.services import example_run as shared_run
from headrace_lab.services.jobs import Seeded

from .conftest import Served

JOB = Seeded(0, steps=40, total=40, status="succeeded", workers=2)


@pytest.fixture
async def record(served: Served, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Of a job whose measurements are many pages, and whose newest heartbeat of the reward is in none of them."""
    monkeypatch.setattr(shared_run, "PAGE", 30)
    await JOB.store(served.redis)
    jobs = JobStore(served.redis)
    jobs.history = History(served.redis, max_heartbeats=5)
    for beat in range(60):
        await jobs.record_reward(JOB.id, RewardMetrics(worker="rollout-0", started=1.0, time=beat, completions=beat))
    return await asyncio.to_thread(shared_run.fetch, served.url, JOB.id)


async def test_all_of_a_job_is_in_it(record: Record, tmp_path: Path) -> None:
    assert [s["step"] for s in record.of("step")] == list(range(1, 41))
    assert record.of("reward")[-1]["completions"] < record.reward["completions"] == 59
    shares = {s.worker: s for s in steady_shares(record)}
    assert {name: round(s.busy, 2) for name, s in shares.items()} == {
        "learner": 0.55,
        "rollout-0": 0.82,
        "rollout-1": 0.82,
    }
    written = await asyncio.to_thread(files, tmp_path, record)
    assert b"none, of 59 completions" in written.pop("index.html")
    assert Record(**json.loads(written.pop("record.json"))) == record
    assert set(written) == {"reward.png", "ages.png", "waiting.png", "ledger.png"}


async def test_ages_of_a_job_whose_bound_was_lowered_are_held_against_their_own_steps(
    record: Record, tmp_path: Path
) -> None:
    record.ledger.update(largest_age=4, largest_age_bound=4)
    record.hyperparameters["max_staleness"] = 2
    page = (await asyncio.to_thread(files, tmp_path, record))["index.html"].decode()
    assert "4 of 4" in page
    assert "of 2" not in page


def files(folder: Path, record: Record) -> dict[str, bytes]:
    """What a report is made of, by name."""
    write_report(folder, record)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
