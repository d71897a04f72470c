"""A learner that is paused in each stage of its work, and goes on as another: no step is lost, doubled or changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from headrace_core.ledger.ledger import Ledger
from headrace_learner.distributed.rank_coordinator import RankCoordinator
from headrace_learner.step_loop import StepLoop
from headrace_learner.worker import LearnerWorker

from .bench import BATCH, STEPS, Bench, train_whole

PAUSES = ((None, 0), ("Train", 1), ("Publish", 2), ("settle", 3), ("Save", 4), ("Train", 5), ("WriteModel", 6))
"""(stage in which the pause comes, policy version that it leaves); None: while the learner waits for groups."""


class Door:
    """Holds the learner where it is about to do one thing: by the order for all ranks, or settling; or where it was
    answered whether the job pauses (`pause_reasons`). Then it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stage: str | None = None
        self._reached, self._opened = asyncio.Event(), asyncio.Event()
        run_on_all, settle, pausing = RankCoordinator.run_on_all, Ledger.settle, StepLoop._pausing

        async def held_run(coordinator: RankCoordinator, order: Any, work: Any) -> Any:
            await self._pass(type(order).__name__)
            return await run_on_all(coordinator, order, work)

        async def held_settle(ledger: Ledger, *given: Any) -> Any:
            await self._pass("settle")
            return await settle(ledger, *given)

        async def held_pausing(steps: StepLoop) -> bool:
            found = await pausing(steps)
            await self._pass("pausing")
            return found

        monkeypatch.setattr(StepLoop, "_pausing", held_pausing)
        monkeypatch.setattr(RankCoordinator, "run_on_all", held_run)
        monkeypatch.setattr(Ledger, "settle", held_settle)

    async def _pass(self, stage: str) -> None:
        if stage == self._stage:
            self._reached.set()
            await self._opened.wait()

    def shut(self, stage: str | None) -> None:
        """Before that stage, once it is reached."""
        self._stage = stage
        self._reached.clear()
        self._opened.clear()

    async def reached(self) -> None:
        """Somebody waits for it to open."""
        await asyncio.wait_for(self._reached.wait(), 60)

    def open(self) -> None:
        """Let pass who waits."""
        self._stage = None
        self._opened.set()


async def pause(job: Bench, worker: LearnerWorker, running: asyncio.Task[str], door: Door) -> str:
    """As the controller does it: the status first, then the worker, which is in the midst of something."""
    await job.jobs.move(job.job_id, "paused")
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    door.open()
    await stopping
    ended = await running
    await job.jobs.move(job.job_id, "queued")
    return ended


async def test_a_pause_in_any_stage_keeps_the_step_and_leads_to_the_same_weights(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench("undisturbed", checkpoint_interval=2, minibatches=2)
    await train_whole(whole)

    job, door = bench("paused", checkpoint_interval=2, minibatches=2), Door(monkeypatch)
    await job.open()
    await job.jobs.move(job.job_id, "queued")
    for stage, version in PAUSES:
        worker = LearnerWorker.from_config(job.config)
        facts = await worker.start()
        before = (await job.ledger.counts()).version
        assert (facts["version"], facts["checkpoint"], facts["replayed_steps"]) == (before, before, 0)
        door.shut(stage)
        running = asyncio.create_task(worker.run())
        feeding = asyncio.create_task(job.feed(version))
        if stage is not None:
            await door.reached()
        ended = await pause(job, worker, running, door)
        assert ended == ("finished" if stage == "WriteModel" else "stopped")
        await feeding
        account = await job.ledger.counts()
        assert account.balanced
        assert (account.version, account.states["trained"]) == (version, version * BATCH)
        assert account.states["claimed"] == 0

    last = LearnerWorker.from_config(job.config)
    assert (await last.start())["replayed_steps"] == 0
    assert await last.run() == "finished"
    await last.stop()
    assert [s.groups for s in await job.ledger.steps()] == [s.groups for s in await whole.ledger.steps()]
    assert account.version == STEPS
    expected, found = whole.model(), job.model()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


async def test_a_step_whose_pause_was_taken_back_is_trained_again_to_the_same_weights(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench("calm", checkpoint_interval=2)
    await train_whole(whole)
    job, door = bench("crossed", checkpoint_interval=2), Door(monkeypatch)
    await job.open()
    await job.jobs.move(job.job_id, "queued")
    await job.jobs.move(job.job_id, "running")
    first = LearnerWorker.from_config(job.config)
    await first.start()
    door.shut("Train")
    running, feeding = asyncio.create_task(first.run()), asyncio.create_task(job.feed(STEPS))
    await door.reached()
    await job.jobs.move(job.job_id, "paused")
    stopping = asyncio.create_task(first.stop())
    await job.jobs.move(job.job_id, "queued")  # resumed, while the learner is told to stop
    door.open()
    await stopping
    assert await running == "stopped"
    assert (await job.ledger.counts()).version == 0
    second = LearnerWorker.from_config(job.config)
    await second.start()
    assert await second.run() == "finished"
    await feeding
    await second.stop()
    expected, found = whole.model(), job.model()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


async def test_a_cancel_in_the_midst_of_a_publication_leaves_nothing_half_written(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, door = bench("cancelled"), Door(monkeypatch)
    await job.open()
    worker = LearnerWorker.from_config(job.config)
    await worker.start()
    door.shut("Publish")
    running, feeding = asyncio.create_task(worker.run()), asyncio.create_task(job.feed(1))
    await door.reached()
    await job.jobs.move(job.job_id, "cancelled")
    assert await job.ledger.close("cancelled") == BATCH
    stopping = asyncio.create_task(worker.stop())
    door.open()
    await stopping
    assert await running == "closed"
    feeding.cancel()
    account = await job.ledger.counts()
    assert account.balanced
    assert (account.version, account.states["cancelled"]) == (0, BATCH)
    assert not list(job.weights.folder.glob(".partial*"))
    assert await job.jobs.checkpoints(job.job_id) == []


async def test_a_pause_that_comes_when_the_step_was_given_up_already_keeps_nothing_of_it(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's weights are of a step then that the ledger knows nothing of."""
    whole = bench("kept", checkpoint_interval=2)
    await train_whole(whole)
    job, door = bench("given-up", checkpoint_interval=2), Door(monkeypatch)
    await job.open()
    for status in ("queued", "running"):
        await job.jobs.move(job.job_id, status)
    first = LearnerWorker.from_config(job.config)
    await first.start()
    door.shut("settle")
    running, feeding = asyncio.create_task(first.run()), asyncio.create_task(job.feed(STEPS))
    await door.reached()
    door.open()
    door.shut("Train")  # of the second step: the first one is settled, and in no checkpoint
    await door.reached()
    stopping = asyncio.create_task(first.stop())  # the service ends, the job is to go on
    await asyncio.sleep(0)
    door.open()
    door.shut("pausing")
    await door.reached()
    await job.jobs.move(job.job_id, "paused")
    door.open()
    await stopping
    assert await running == "stopped"
    assert (await job.ledger.counts()).version == 1
    assert await job.jobs.checkpoints(job.job_id) == []
    await job.jobs.move(job.job_id, "queued")
    second = LearnerWorker.from_config(job.config)
    assert (await second.start())["version"] == 1
    assert await second.run() == "finished"
    await feeding
    await second.stop()
    expected, found = whole.model(), job.model()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
