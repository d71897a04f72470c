"""The learner on a real Redis with synthetic groups: settles, publishes, checkpoints, resumes bit-identically."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from headrace_core.errors import InvalidState, TimedOut
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.records import TransitionOutcome
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.types.job import model_name
from headrace_lab.services.jobs import heartbeat
from headrace_learner.worker import LearnerWorker

from .bench import BATCH, STEPS, Bench, learner, train_whole
from .cases import random_group


async def test_a_job_is_trained_step_by_step(bench: Callable[..., Bench]) -> None:
    job = bench("whole", checkpoint_interval=2)
    await train_whole(job)
    account = await job.ledger.counts()
    assert account.balanced
    assert (account.version, account.states["trained"]) == (STEPS, STEPS * BATCH)
    assert [c.step for c in await job.jobs.checkpoints(job.job_id)] == [6, 4, 2]
    stored = await job.jobs.get(job.job_id)
    steps = await job.ledger.steps()
    assert stored.trained_tokens == sum(sum(s.ages.values()) for s in steps) > 0
    metrics = [m for _, kind, m in await job.jobs.metrics(job.job_id) if kind == "step"]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert set(metrics[0]["seconds"]) == {"wait", "batch", "train", "publish", "settle", "snapshot", "checkpoint"}
    events = [e for _, e in await job.jobs.events(job.job_id) if e.type == "metrics"]
    assert events[0].message == f"Step 1/6, train mean reward={metrics[0]['reward_mean']:.2f}"
    assert events[0].data is not None
    assert events[0].data["staleness"] == {"age_mean": 0.0, "age_max": 0, "bound": 2}
    (beat,) = await job.jobs.workers(job.job_id)
    assert (beat.role, beat.worker) == ("learner", "learner")
    offered = (await job.jobs.checkpoints(job.job_id))[0]
    assert offered.model == model_name(stored, 6)
    assert (Path(offered.path) / "model" / "config.json").is_file()
    final, published = job.model(), load_file(job.weights.open("v00000006-t1") / "model.safetensors")
    assert final.keys() == published.keys()
    assert all(torch.equal(final[name], published[name]) for name in final)


async def test_a_step_is_measured_though_its_learner_died_before_it_told(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench("untold")
    await job.open()
    first, settled = LearnerWorker.from_config(job.config), asyncio.Event()
    await first.start()
    steps = first._steps
    assert steps is not None
    report = steps._report

    async def die_at_the_third(*reported: Any) -> None:
        if steps.version < 3:
            return await report(*reported)
        settled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(steps, "_report", die_at_the_third)
    running = asyncio.create_task(first.run())
    await job.feed(3)
    await asyncio.wait_for(settled.wait(), 60)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    second = LearnerWorker.from_config(job.config)
    await second.start()
    measured = [m for _, kind, m in await job.jobs.metrics(job.job_id) if kind == "step"]
    assert [m["step"] for m in measured] == [1, 2, 3]
    assert measured[2]["seconds"].keys() == measured[1]["seconds"].keys()
    await asyncio.gather(first.stop(), second.stop())


async def test_a_learner_that_died_is_replaced_bit_identically(bench: Callable[..., Bench]) -> None:
    whole = bench("undisturbed", checkpoint_interval=2, minibatches=2, snapshot_every=0)
    await train_whole(whole)

    job = bench("disturbed", checkpoint_interval=2, minibatches=2, snapshot_every=0)
    await job.open()
    first = LearnerWorker.from_config(job.config)
    await first.start()
    running = asyncio.create_task(first.run())
    await job.feed(3)  # checkpoint at 2, one settled step beyond it
    running.cancel()  # no farewell: nothing is saved or given back
    await asyncio.gather(running, return_exceptions=True)
    shutil.rmtree(job.weights.folder)  # the machine's memory went with it
    second = LearnerWorker.from_config(job.config)
    facts = await second.start()
    assert (facts["checkpoint"], facts["replayed_steps"], facts["version"]) == (2, 1, 3)
    version, name = await job.ledger.newest()
    assert version == 3
    assert name is not None
    assert job.weights.open(name).name == "v00000003-t1"  # the name the ledger knows, published again
    ended, _ = await asyncio.gather(second.run(), job.feed(STEPS))
    assert ended == "finished"
    await first.stop()
    await second.stop()
    expected, found = whole.model(), job.model()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [s.ages for s in await job.ledger.steps()] == [s.ages for s in await whole.ledger.steps()]


async def test_a_damaged_checkpoint_is_named_and_the_one_before_still_leads_to_the_same_weights(
    bench: Callable[..., Bench],
) -> None:
    whole = bench("sound", checkpoint_interval=2)
    await train_whole(whole)
    job = bench("damaged", checkpoint_interval=2, snapshot_every=0)
    await job.open()
    async with learner(job.config) as first:
        running = asyncio.create_task(first.run())
        await job.feed(5)
    assert await running == "stopped"
    newest = job.output / "checkpoints" / "step-00000004" / "model" / "model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    second = LearnerWorker.from_config(job.config)
    facts = await second.start()
    assert (facts["checkpoint"], facts["replayed_steps"]) == (2, 3)
    warnings = [e.message for _, e in await job.jobs.events(job.job_id) if e.level == "warn"]
    assert len(warnings) == 1
    assert "step-00000004: model/model.safetensors" in warnings[0]
    await asyncio.gather(second.run(), job.feed(STEPS))
    await second.stop()
    expected, found = whole.model(), job.model()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


async def test_tokens_beyond_the_bound_are_masked_and_counted(bench: Callable[..., Bench]) -> None:
    job = bench("late", max_staleness=1, n_steps=3)
    await job.open()
    admission = await job.ledger.admit("rollout-0", 0, 8, 60)
    groups = [random_group(lease.group_id, (0,) if i < 4 else (0, 1)) for i, lease in enumerate(admission.leases)]
    straggler = admission.leases[7]
    for lease, group in zip(admission.leases[:7], groups, strict=False):
        await job.ledger.commit(lease, group)
    async with learner(job.config) as worker:
        running = asyncio.create_task(worker.run())
        for version in (0, 1):
            if version == 1:
                await commit_new(job, 1)
            await job.next_version(version)
        # version 2 now: the straggler's tokens of version 0 are of age 2, beyond the bound; those of version 1 are not
        late = random_group(straggler.group_id, (0, 1))
        await job.ledger.commit(straggler, late)
        await commit_new(job, 3)
        await job.next_version(2)
        await worker.stop()
        assert await running == "stopped"
    steps = await job.ledger.steps()
    tokens = {v: sum(int((c.versions == v).sum()) for c in late.completions) for v in (0, 1)}
    assert straggler.group_id in steps[2].groups
    assert steps[2].masked_tokens == tokens[0] > 0
    assert steps[2].ages[1] == tokens[1]
    assert 2 not in steps[2].ages
    account = await job.ledger.counts()
    assert (account.largest_age, account.masked_tokens) == (1, tokens[0])
    metrics = [m for _, kind, m in await job.jobs.metrics(job.job_id) if kind == "step"]
    assert metrics[2]["ages"]["2"]["masked"] == metrics[2]["ages"]["2"]["tokens"] == tokens[0]


async def commit_new(job: Bench, count: int) -> None:
    """Admit and commit `count` groups sampled by the newest version."""
    version = (await job.ledger.newest())[0]
    admission = await job.ledger.admit("rollout-0", version, count, 60)
    assert len(admission.leases) == count
    for lease in admission.leases:
        await job.ledger.commit(lease, random_group(lease.group_id, (version,)))


async def test_groups_without_an_applicable_reward_change_nothing(bench: Callable[..., Bench]) -> None:
    job = bench("none", n_steps=1)
    await job.open()
    admission = await job.ledger.admit("rollout-0", 0, BATCH, 60)
    for lease in admission.leases:
        await job.ledger.commit(lease, random_group(lease.group_id, rewards=[None, None]))
    async with learner(job.config) as worker:
        running = asyncio.create_task(worker.run())
        await job.next_version(0)
        await worker.stop()
        await running
    before = load_file(Path(job.config.model_path) / "model.safetensors")
    after = load_file(job.weights.open("v00000001-t1") / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert [s.ages for s in await job.ledger.steps()] == [{}]


async def test_a_wait_without_progress_says_what_it_waited_for(bench: Callable[..., Bench]) -> None:
    job = bench("stalled")
    await job.open()
    await commit_new(job, 3)
    async with learner(msgspec.structs.replace(job.config, stall_timeout=0.2)) as worker:
        with pytest.raises(TimedOut, match="for groups: 3 of 4 queued"):
            await worker.run()


async def test_stragglers_that_are_waited_for_are_named(bench: Callable[..., Bench]) -> None:
    job = bench("straggler", max_staleness=1, late="wait")
    await job.open()
    admission = await job.ledger.admit("rollout-0", 0, 2 * BATCH, 60)
    for lease in admission.leases[:BATCH]:
        await job.ledger.commit(lease, random_group(lease.group_id))
    async with learner(msgspec.structs.replace(job.config, stall_timeout=0.5)) as worker:
        running = asyncio.create_task(worker.run())
        await job.next_version(0)
        await commit_new(
            job, BATCH
        )  # a full batch, but without groups 4 to 7, which version 2 could not train any more
        with pytest.raises(TimedOut, match="for stragglers, groups 4, 5, 6, 7"):
            await running


async def test_a_replaced_learner_stops_with_an_error_that_says_so(bench: Callable[..., Bench]) -> None:
    job = bench("fenced")
    await job.open()
    async with learner(job.config) as old:
        running = asyncio.create_task(old.run())
        await job.ledger.enlist()
        await commit_new(job, BATCH)
        with pytest.raises(InvalidState, match="another learner has taken over"):
            await running


async def test_a_closed_job_ends_a_waiting_learner(bench: Callable[..., Bench]) -> None:
    job = bench("closed")
    await job.open()
    async with learner(job.config) as worker:
        running = asyncio.create_task(worker.run())
        await job.ledger.close("cancelled by the user")
        assert await asyncio.wait_for(running, 20) == "closed"


async def feed_alike(job: Bench, alike: Callable[[int], bool]) -> None:
    """Groups as they are admitted, for ever; those that `alike` names have equal rewards."""
    while (version := (await job.ledger.newest())[0]) < STEPS:
        admission = await job.ledger.admit("rollout-0", version, BATCH, 60)
        for lease in admission.leases:
            rewards = [1.0] * 4 if alike(lease.group_id) else [1.0, 0.0, 0.0, 1.0]
            group = random_group(lease.group_id, (lease.version,), rewards=rewards)
            assert await job.ledger.commit(lease, group) is TransitionOutcome.QUEUED
        await asyncio.sleep(0.01)


async def test_groups_of_equal_rewards_are_filtered_and_replaced(bench: Callable[..., Bench]) -> None:
    job = bench("filtered", filter_groups=True)
    await job.open()
    async with learner(job.config) as worker:
        ended, _ = await asyncio.gather(worker.run(), feed_alike(job, lambda group: group % 3 == 0))
    assert ended == "finished"
    account = await job.ledger.counts()
    assert account.balanced
    assert account.states["trained"] == STEPS * BATCH
    steps = await job.ledger.steps()
    trained = [group for step in steps for group in step.groups]
    assert trained == sorted(trained)
    assert not any(group % 3 == 0 for group in trained)
    assert account.states["filtered"] == sum(group % 3 == 0 for group in range(max(trained)))
    assert [t.state for t in await job.ledger.history(3)] == ["leased", "queued", "claimed", "filtered"]


async def test_the_search_for_groups_that_differ_has_an_end(bench: Callable[..., Bench]) -> None:
    job = bench("alike", filter_groups=True, filter_limit=2)
    await job.open()
    async with learner(job.config) as worker:
        ended, _ = await asyncio.gather(worker.run(), feed_alike(job, lambda group: True))
    assert ended == "finished"
    states = (await job.ledger.counts()).states
    assert (states["trained"], states["filtered"]) == (STEPS * BATCH, STEPS * 2 * BATCH)


async def change(job: Bench, **values: float) -> int:
    """Change settings as the gateway does; the version from which they hold."""
    live = SettingsLog(job.redis, job.job_id, job.settings)
    await live.refresh()
    made = await live.change(values, "alice")
    assert made is not None
    return made[0].from_version


async def test_changed_settings_hold_from_their_version_and_a_replay_finds_the_same(
    bench: Callable[..., Bench],
) -> None:
    """The learner dies after a change and before a checkpoint; another job, that had no accident, is its measure."""
    models, rates = [], []
    for name in ("calm", "accident"):
        job = bench(name, checkpoint_interval=4, learning_rate=1e-3, warmup_steps=2, snapshot_every=0)
        await job.open()
        worker = LearnerWorker.from_config(job.config)
        await worker.start()
        running = asyncio.create_task(worker.run())
        await job.feed(1)
        assert await change(job, learning_rate=4e-3, max_staleness=0) == 1
        await job.feed(3)
        if name == "accident":
            running.cancel()  # no farewell; no checkpoint yet
            await asyncio.gather(running, return_exceptions=True)
            await change(job, learning_rate=2e-3)
            second = LearnerWorker.from_config(job.config)
            assert (await second.start())["replayed_steps"] == 3
            running = asyncio.create_task(second.run())
        else:
            await change(job, learning_rate=2e-3)
            second = worker
        await job.feed(STEPS)
        assert await running == "finished"
        await worker.stop()
        await second.stop()
        models.append(job.model())
        steps = [m for _, kind, m in await job.jobs.metrics(job.job_id) if kind == "step"]
        rates.append([m["learning_rate"] for m in steps])
        bounds = [e.data["staleness"]["bound"] for _, e in await job.jobs.events(job.job_id) if e.data]
        assert bounds == [2, *[0] * (len(bounds) - 1)]
    assert rates[0] == [5e-4, 4e-3, 4e-3, 2e-3, 2e-3, 2e-3]
    assert rates[1][-3:] == rates[0][-3:]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


async def test_what_is_queued_when_the_bound_shrinks_is_masked_by_the_new_one(bench: Callable[..., Bench]) -> None:
    job = bench("shrunk", max_staleness=2, n_steps=3)
    await job.open()
    await commit_new(job, BATCH + 2)
    async with learner(job.config) as worker:
        running = asyncio.create_task(worker.run())
        await job.next_version(0)  # two groups of version 0 are left
        assert await change(job, max_staleness=0) == 1
        await commit_new(job, 2)
        await job.next_version(1)
        await worker.stop()
        assert await running == "stopped"
    first, second = await job.ledger.steps()
    assert set(first.ages) == set(second.ages) == {0}
    assert first.masked_tokens == 0
    assert second.masked_tokens > 0
    assert (await job.ledger.counts()).largest_age == 0


async def test_a_learner_whose_rollout_workers_are_all_drained_waits_without_limit(bench: Callable[..., Bench]) -> None:
    job, drains = bench("drained"), WorkerDrains(bench("drained").redis, "ftjob-drained")
    await job.open()
    await drains.request("rollout-0", seconds=60)
    async with learner(msgspec.structs.replace(job.config, stall_timeout=0.3)) as worker:
        running = asyncio.create_task(worker.run())
        done, _ = await asyncio.wait([running], timeout=1.5)
        assert not done
        await drains.release("rollout-0")
        with pytest.raises(TimedOut, match="for groups: 0 of 4 queued"):
            await asyncio.wait_for(running, 10)


async def test_a_learner_waits_for_as_long_as_tokens_are_sampled(bench: Callable[..., Bench]) -> None:
    """A group of long completions may take longer than the stall timeout."""
    job = bench("long")
    await job.open()

    async def sample(tokens: int) -> None:
        beat = heartbeat("rollout-0", computed_tokens=tokens)
        await job.jobs.record_heartbeat(job.job_id, beat)

    await sample(0)
    async with learner(msgspec.structs.replace(job.config, stall_timeout=0.3)) as worker:
        running = asyncio.create_task(worker.run())
        for tokens in range(1, 16):
            await sample(tokens)
            done, _ = await asyncio.wait([running], timeout=0.1)
            assert not done
        with pytest.raises(TimedOut, match="for groups: 0 of 4 queued"):
            await asyncio.wait_for(running, 10)


async def test_a_learner_waits_for_as_long_as_an_evaluation_comes_on(bench: Callable[..., Bench]) -> None:
    """It holds the version of the worker that samples it, which takes no new groups meanwhile."""
    job = bench("evaluating")
    await job.open()

    async def evaluate(completions: int) -> None:
        beat = heartbeat("rollout-0", evaluation=(0, completions))
        await job.jobs.record_heartbeat(job.job_id, beat)

    await evaluate(0)
    async with learner(msgspec.structs.replace(job.config, stall_timeout=0.3)) as worker:
        running = asyncio.create_task(worker.run())
        for completions in range(1, 16):
            await evaluate(completions)
            done, _ = await asyncio.wait([running], timeout=0.1)
            assert not done
        with pytest.raises(TimedOut, match="for groups: 0 of 4 queued"):
            await asyncio.wait_for(running, 10)
