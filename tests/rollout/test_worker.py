"""The rollout worker on a real Redis, with the transformers engine and the shipped adder; the tests play learner."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from redis.asyncio import Redis
from safetensors.torch import load_file, save_file

from headrace_core.concurrency import cancel
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidData, InvalidState, TimedOut
from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.jobs.settings_log import SettingsLog
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import Term, TransitionOutcome
from headrace_core.ledger.worker_drains import WorkerDrains
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import run as answer
from headrace_core.redis_access.scripts import script_source
from headrace_core.storage.dataset import PromptOrder, read_rows
from headrace_core.storage.weight_store import WeightStore
from headrace_core.types.job import Job
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.held_answers import held_answers
from headrace_lab.paths import ADDER
from headrace_lab.training.trained_steps import step_of
from headrace_lab.waiting import wait_until_async
from headrace_rollout.engines.engine import EngineFailure, RequestRefused
from headrace_rollout.engines.transformers.policy_model import PolicyModel, StagedWeights
from headrace_rollout.ports import engine_config
from headrace_rollout.worker import RolloutWorker

from .engine_cases import import_vllm

JOB = "ftjob-rollout"
SETTINGS = Hyperparameters(
    engine="transformers",
    n_steps=50,
    batch_size=2,
    group_size=3,
    max_staleness=1,
    max_tokens=48,
    max_context=128,
    max_running=12,
    seed=7,
    eval_samples=4,
    max_reward_failures=1.0,
)
WINDOW = 4
"""(max_staleness + 1) × batch_size."""

Start = Callable[..., Awaitable[RolloutWorker]]


@pytest.fixture
async def ledger(redis: Redis) -> Ledger:
    ledger = Ledger(redis, JOB)
    await ledger.open(SETTINGS.limits(3000))
    return ledger


@pytest.fixture
async def jobs(redis: Redis) -> JobStore:
    jobs = JobStore(redis)
    await jobs.create(Job(id=JOB, created_at=0.0, model="adder", model_path="", training_file=""))
    return jobs


@pytest.fixture
async def start(redis_server: RedisServer, jobs: JobStore, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts workers; they are stopped at the end."""
    started: list[RolloutWorker] = []

    async def start(
        name: str = "rollout-0",
        function: str = f"{ADDER / 'reward.py'}:correct",
        grader: dict[str, Any] | None = None,
        update_timeout: float = 240.0,
        start_timeout: float = 60.0,
        model: Path = ADDER / "model",
        ready: bool = True,
        training_file: str = str(ADDER / "train.jsonl"),
        lease_seconds: float = 60.0,
        redis_url: str = redis_server.url,
        **changes: Any,
    ) -> RolloutWorker:
        config = WorkerConfig(
            job_id=JOB,
            worker=name,
            redis_url=redis_url,
            weights_root=str(tmp_path / "weights"),
            model_path=str(model),
            training_file=training_file,
            validation_file=str(ADDER / "validation.jsonl"),
            output_dir=str(tmp_path),
            rows=3000,
            total_steps=50,
            grader=grader or {"type": "function", "name": "reward", "function": function},
            hyperparameters=SETTINGS.model_dump() | changes,
            start_timeout=start_timeout,
            update_timeout=update_timeout,
            stall_timeout=30.0,
            lease_seconds=lease_seconds,
        )
        worker = RolloutWorker.from_config(config)
        started.append(worker)
        if ready:
            await worker.start()
        return worker

    yield start
    for worker in started:
        await worker.stop()


async def queued(ledger: Ledger) -> int:
    return (await ledger.counts()).states["queued"]


async def train_one_step(
    ledger: Ledger, store: WeightStore, changes: int = 0, write: Callable[[Path], Any] | None = None
) -> list[Any]:
    """What a learner does between two versions, without learning."""
    term = await ledger.enlist()
    limits = SETTINGS.limits(3000)
    claim = await ledger.claim(term, limits, "mask", changes=changes)
    version = claim.version
    name = store.publish(version + 1, term.number, write or copy_model).name
    assert await ledger.settle(term, step_of(claim, limits.max_staleness), name) is TransitionOutcome.SETTLED
    return list(claim.groups)


def copy_model(folder: Path) -> None:
    shutil.copy(ADDER / "model" / "model.safetensors", folder)


async def test_workers_that_ask_at_once_share_the_window(start: Start, ledger: Ledger) -> None:
    """Each has room for all of it: one that takes as much as it can leaves the others without work."""
    workers = [await start("rollout-0"), await start("rollout-1")]
    runs = [asyncio.create_task(worker.run()) for worker in workers]
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    notes = [(await ledger.history(group))[0].note for group in range(WINDOW)]
    assert sorted(note.split()[0] for note in notes) == ["rollout-0", "rollout-0", "rollout-1", "rollout-1"]
    await asyncio.gather(*(worker.stop() for worker in workers))
    assert await asyncio.gather(*runs) == ["stopped", "stopped"]


async def test_workers_sample_by_seeds_of_their_own(start: Start) -> None:
    """Also those whose names are made of the same characters, and the neighbours of jobs with neighbouring seeds."""
    workers = [await start(name, ready=False, seed=seed) for seed in (0, 1) for name in ("rollout-12", "rollout-21")]
    workers += [await start("rollout-0", ready=False, seed=1), await start("rollout-1", ready=False, seed=0)]
    assert len({engine_config(worker._config).seed for worker in workers}) == len(workers)


async def test_it_fills_the_window_and_waits_for_the_learner(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    worker = await start()
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    store = WeightStore(tmp_path / "weights", JOB)
    groups = await train_one_step(ledger, store)

    order, rows = PromptOrder(3000, SETTINGS.seed), read_rows(ADDER / "train.jsonl")
    assert [g.group_id for g in groups] == [0, 1]
    for group in groups:
        assert group.row == order.row(group.group_id)
        assert len(group.completions) == SETTINGS.group_size
        for completion in group.completions:
            assert (completion.versions == 0).all()
            assert (completion.logprobs <= 0).all()
            assert completion.reward in (0.0, 1.0)
    assert rows[groups[0].row].item["answer"]

    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the freed places are taken again")
    newer = (await train_one_step(ledger, store)) + (await train_one_step(ledger, store))
    assert [g.group_id for g in newer] == [2, 3, 4, 5]
    assert {int(v) for g in newer[2:] for c in g.completions for v in c.versions} == {1}, "admitted after version 1"
    await ledger.close("finished")
    assert await asyncio.wait_for(run, 30) == "closed"


async def equals(value: Awaitable[int], wanted: int) -> bool:
    return await value == wanted


async def test_a_failing_reward_is_told_and_is_not_a_reward_of_zero(
    start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("def bad(sample, item):\n    raise LookupError('nothing here')\n")
    worker = await start(function=f"{tmp_path / 'bad.py'}:bad")
    run = asyncio.create_task(worker.run())

    async def failed() -> bool:
        return (await ledger.counts()).states["reward_failed"] >= 8

    await wait_until_async(failed, "groups end as reward_failed")
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)
    account = await ledger.counts()
    assert account.balanced
    assert account.states["trained"] == account.states["queued"] == 0
    told = [event for _, event in await jobs.events(JOB) if event.level == "warn"]
    assert 1 <= len(told) <= 5
    assert told[0].data is not None
    assert "nothing here" in told[0].data["traceback"]


async def test_rows_that_the_engine_refuses_are_named_and_do_not_follow_as_fast_as_they_can_fail(
    start: Start, ledger: Ledger, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start()
    refused = PromptOrder(3000, SETTINGS.seed).row(1)
    generate = worker._engine.generate

    async def refuses(prompt: Any, *rest: Any) -> Any:
        if only is None or np.array_equal(prompt, only):
            raise RequestRefused("no engine can serve it")
        return await generate(prompt, *rest)

    only: npt.NDArray[np.int32] | None = worker._groups._builder._prompts[refused].token_ids
    monkeypatch.setattr(worker._engine, "generate", refuses)
    run = asyncio.create_task(worker.run())
    await wait_until_async(
        lambda: equals(queued(ledger), WINDOW), "another group takes the place of the one that failed"
    )
    assert (await ledger.counts()).states["generation_failed"] == 1
    (told,) = [event for _, event in await jobs.events(JOB)]
    assert (
        told.message == f"the row of line {refused + 1} cannot be generated, and group 1 ends: no engine can serve it"
    )
    assert told.data == {"group": 1, "row": refused, "line": refused + 1, "error": "no engine can serve it"}

    only = None  # from here on it refuses all
    claim = await ledger.claim(await ledger.enlist(), SETTINGS.limits(3000), "mask")
    await ledger.filter(Term(1, 0), [g.group_id for g in claim.groups], "to make room")
    await asyncio.sleep(3)
    failed = (await ledger.counts()).states["generation_failed"]
    assert 4 <= failed <= 14  # it waits 0.05, 0.1, … 0.8, 1.0 s: two are leased by then, and one at a time
    assert len(await jobs.events(JOB)) <= 5
    result = await worker.evaluate(0)
    assert (result.generation_failed, result.samples, result.reward_mean) == (4, 4, None)
    assert (result.step, result.completion_length, result.reward_failed) == (0, 0.0, 0)
    (of_evaluation,) = [event for _, event in await jobs.events(JOB) if "evaluation" in event.message]
    assert of_evaluation.message.startswith("4 of 4 rows could not be generated in the evaluation of version 0")
    await ledger.close("enough")
    assert await asyncio.wait_for(run, 30) == "closed"


async def test_a_reference_answer_that_shortens_completions_is_told_with_its_row(
    start: Start, jobs: JobStore, tmp_path: Path
) -> None:
    lines = [{"messages": [{"role": "user", "content": "1 + 2 ="}], "answer": answer} for answer in ("3", "1 + " * 40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    grader = {"type": "verifree", "name": "likelihood"}
    worker = await start(grader=grader, training_file=str(file))
    await start("rollout-1", grader=grader, training_file=str(file))
    (told,) = [event for _, event in await jobs.events(JOB) if "reference answer" in event.message]
    assert worker._groups._builder.tightest is not None
    room = worker._groups._builder.tightest[0]
    assert 1 <= room < SETTINGS.max_tokens
    assert told.message.startswith(f"the reference answer of line 2 leaves {room} tokens for a completion, less than ")
    assert told.data == {"row": 1, "line": 2, "tokens": room}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"content": "What is 1 + 2?"}, "line 2: there is no reference answer"),
        ({"content": "What is 1 + 2?", "answer": "1 + " * 150}, "line 2: prompt and reference answer leave no room"),
        ({"content": "9 + " * 60, "answer": "3"}, "line 2: the prompt has "),
    ],
)
async def test_a_row_that_cannot_be_served_ends_the_start_before_the_engine_loads(
    start: Start, tmp_path: Path, row: dict[str, str], message: str
) -> None:
    content, item = row["content"], {name: text for name, text in row.items() if name != "content"}
    lines = [
        {"messages": [{"role": "user", "content": text}]} | more
        for text, more in (("1", {"answer": "1"}), (content, item))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    worker = await start(grader={"type": "verifree", "name": "likelihood"}, training_file=str(file), ready=False)
    with pytest.raises(InvalidData, match=message):
        await worker.start()
    assert worker._engine.busy_seconds == 0


@pytest.mark.slow
async def test_failed_completions_are_left_out_and_the_reward_is_reported(
    start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    (tmp_path / "one.py").write_text(
        "def first(completions):\n    return [float('nan'), *range(len(completions) - 1)]\n"
    )
    worker = await start(function=f"{tmp_path / 'one.py'}:first", reward_failure="leave_out", reward_recheck=1.0)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "groups go on without the completion that failed")

    async def reported() -> bool:
        return any(r.again.equal.groups for r in await jobs.rewards(JOB))

    await wait_until_async(reported, "groups are scored again, and that is reported")
    claim = await ledger.claim(await ledger.enlist(), SETTINGS.limits(3000), "mask")
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)
    assert {tuple(c.reward for c in g.completions) for g in claim.groups} == {(None, 0.0, 1.0)}
    (counted,) = await jobs.rewards(JOB)
    assert counted.failures == {"invalid_value": counted.groups}
    assert (counted.left_out, counted.completions) == (counted.groups, 3 * counted.groups)
    assert counted.again.equal.total == 2 * counted.again.equal.groups
    assert counted.again_failures == {"invalid_value": counted.again.equal.groups}
    entries = [data for _, kind, data in await jobs.metrics(JOB) if kind == "reward"]
    assert entries[-1]["groups"] == counted.groups
    (beat,) = await jobs.workers(JOB)
    assert beat.errors["reward_invalid_value"] == counted.groups
    assert [e.data["kind"] for _, e in await jobs.events(JOB) if e.data] == ["invalid_value"] * WINDOW


async def test_an_evaluation_that_fails_says_so_and_has_no_mean_of_nothing(
    start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "def bad(sample, item):\n    raise LookupError('nothing here')\n\ndef silent(sample, item):\n    return None\n"
    )
    worker = await start(function=f"{tmp_path / 'bad.py'}:bad")
    result = await worker.evaluate(0)
    assert (result.reward_mean, result.reward_failed, result.failures) == (None, 4, {"exception": 4})
    (told,) = [event for _, event in await jobs.events(JOB)]
    assert told.message == "reward failed in the evaluation of version 0: exception 4, of 4"
    assert told.data is not None
    assert "nothing here" in told.data["traceback"]
    silent = await start("rollout-1", function=f"{tmp_path / 'bad.py'}:silent")
    result = await silent.evaluate(0)
    assert (result.reward_mean, result.reward_failed, result.not_applicable) == (None, 0, 4)


async def test_what_it_held_is_free_at_once_when_it_stops(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    code = tmp_path / "slow.py"
    code.write_text("import time\n\ndef slow(completions):\n    time.sleep(60)\n")
    worker = await start(function=f"{code}:slow")
    run = asyncio.create_task(worker.run())

    async def holds() -> bool:
        return (await ledger.counts()).states["leased"] > 0

    await wait_until_async(holds, "it leases")
    await worker.stop()
    assert await asyncio.wait_for(run, 30) == "stopped"
    other = await ledger.admit("rollout-1", 0, 100, 60.0)
    account = await ledger.counts()
    assert account.states["leased"] == len(other.leases) > 0, "every lease is the other worker's now"
    assert account.states["leased"] + account.states["queued"] == WINDOW


async def test_a_lease_is_free_at_once_whose_grant_had_not_arrived_when_it_stopped(
    start: Start, ledger: Ledger, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with held_answers(redis_server.url, tmp_path) as redis:
        worker = await start(redis_url=redis.url)
        assert not (await ledger.admit("rollout-1", 0, 0, 60.0)).leases  # from now on Redis knows the script
        redis.hold(script("admit"))
        run = asyncio.create_task(worker.run())
        await redis.answered()
        assert await leased(ledger) == 1, "Redis has granted it"
        stopping = asyncio.create_task(worker.stop())
        await wait_until_async(lambda: all_cancelled(run), "its tasks are being ended")
        redis.let_go()
        await asyncio.wait_for(stopping, 30)
        assert await run == "stopped"
    assert [t.note for t in (await ledger.history(0))][1:] == ["given back"]
    other = await ledger.admit("rollout-1", 0, 100, 60.0)
    assert sorted(lease.group_id for lease in other.leases) == list(range(WINDOW)), "every group is the other's now"


async def all_cancelled(run: asyncio.Task[str]) -> bool:
    """Whether each of `run`'s loops was told to end, but for those that have."""
    return not run.done() and not any(t.get_name() == "_heartbeat_loop" for t in asyncio.all_tasks())


async def test_what_an_engine_that_fails_held_is_free_at_once(
    start: Start, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start()

    async def gone(*_: Any, **__: Any) -> None:
        raise EngineFailure("the engine is gone")

    monkeypatch.setattr(worker._engine, "generate", gone)
    with pytest.raises(EngineFailure, match="the engine is gone"):
        await asyncio.wait_for(worker.run(), 30)
    assert await leased(ledger) > 0
    other = await ledger.admit("rollout-1", 0, 100, 60.0)
    assert sorted(lease.group_id for lease in other.leases) == list(range(WINDOW))


async def test_what_a_drain_was_giving_back_when_it_stopped_is_free_at_once(
    start: Start, ledger: Ledger, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    code = tmp_path / "slow.py"
    code.write_text("import time\n\ndef slow(completions):\n    time.sleep(60)\n")
    async with held_answers(redis_server.url, tmp_path) as held:
        worker = await start(function=f"{code}:slow", redis_url=held.url)
        run = asyncio.create_task(worker.run())
        # Not by the ledger's count: there the last lease counts before the worker has heard of it.
        await wait_until_async(lambda: groups_under_way(WINDOW), "it makes the whole window")
        # Else it would take the groups again as soon as Redis has them back.
        await WorkerDrains(redis, JOB).request("rollout-0", seconds=60)
        returned = asyncio.create_task(worker._leases.give_back(), name="drained")
        held.hold(script("release"))
        await wait_until_async(lambda: groups_under_way(0), "its groups were cancelled")
        await cancel([returned])
        held.let_go()
        await asyncio.wait_for(worker.stop(), 30)
        assert await run == "stopped"
    other = await ledger.admit("rollout-1", 0, 100, 60.0)
    assert len(other.leases) == WINDOW


def script(name: str) -> bytes:
    """As commands name it."""
    return hashlib.sha1(script_source(name).encode()).hexdigest().encode()


async def groups_under_way(count: int) -> bool:
    """Whether workers of this process make so many groups now."""
    return sum(task.get_name().startswith("group-") for task in asyncio.all_tasks()) == count


@pytest.mark.parametrize("lease_seconds", [60.0, 0.6])
async def test_it_takes_over_the_groups_of_a_worker_that_died(
    start: Start, ledger: Ledger, lease_seconds: float
) -> None:
    lost = await ledger.admit("rollout-9", 0, WINDOW, lease_seconds=min(lease_seconds, 2.0))
    worker = await start(lease_seconds=lease_seconds)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "every lost group is queued")
    assert [t.state for t in await ledger.history(lost.leases[0].group_id)][-1] == "queued"
    assert (await ledger.counts()).admitted == WINDOW
    await ledger.close("finished")
    await asyncio.wait_for(run, 30)


async def test_an_evaluation_scores_greedy_completions_of_the_held_out_rows(start: Start, ledger: Ledger) -> None:
    worker = await start()
    result = await worker.evaluate(0)
    assert result.samples == 4
    assert result.step == 0
    assert result.reward_failed == 0
    assert result.reward_mean == (await worker.evaluate(0)).reward_mean, "greedy decoding repeats itself"


async def test_a_function_of_groups_sees_one_held_out_prompt_at_a_time(start: Start, tmp_path: Path) -> None:
    """Its time limit is for one group, and what it compares are completions of one prompt."""
    code = tmp_path / "grouped.py"
    code.write_text("def count(completions, **kwargs):\n    return [len(completions)] * len(completions)\n")
    result = await (await start(function=f"{code}:count")).evaluate(0)
    assert (result.samples, result.reward_mean) == (4, 1.0)


ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
LONG = {"eval_samples": 60, "max_running": 6}
"""An evaluation that takes a while."""


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_evaluation_measures_one_version_whatever_is_published_meanwhile(
    engine: str, start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    """Of a model whose tokenizer alone knows the end of a text, which every engine stops at all the same."""
    if engine == "vllm":
        import_vllm()
    model = tokenizer_alone_ends(tmp_path / "model")
    worker = await start(engine=engine, start_timeout=240.0, model=model, **LONG)
    store = WeightStore(tmp_path / "weights", JOB)
    alone = await worker.evaluate(0)
    assert alone.completion_length < 0.6 * SETTINGS.max_tokens
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    evaluations = [asyncio.create_task(worker.evaluate(0)) for _ in range(2)]
    await wait_until_async(lambda: evaluated(worker, 6), "evaluations are under way")
    for _ in range(2):
        await train_one_step(ledger, store, write=other_model)
    assert not any(evaluation.done() for evaluation in evaluations), "both versions came in the middle"
    for found in await asyncio.gather(*evaluations):
        assert (found.step, found.samples) == (0, 60)
        assert (found.reward_mean, found.completion_length) == pytest.approx(
            (alone.reward_mean, alone.completion_length), rel=0.02
        )
    await wait_until_async(lambda: equals(version_of(jobs), 2), "then the newest version is applied")
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "and training goes on")
    after = await worker.evaluate(1)
    assert after.step == 2, "the version that was measured, not the one that was asked for"
    assert (after.reward_mean, after.completion_length) != (alone.reward_mean, alone.completion_length)
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def test_a_worker_whose_version_is_held_ends_its_groups_and_takes_no_more(
    start: Start, ledger: Ledger, tmp_path: Path
) -> None:
    worker, store = await start(**LONG), WeightStore(tmp_path / "weights", JOB)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    evaluation = asyncio.create_task(worker.evaluate(0))
    await wait_until_async(lambda: evaluated(worker, 1), "it is under way")
    await train_one_step(ledger, store)
    while not evaluation.done():
        account = await ledger.counts()
        held = worker._engine.version == 0  # until its last completion is sampled; its rewards hold nothing
        assert not held or account.admitted == WINDOW, "none by an old version, as the window counts on"
        await asyncio.sleep(0.01)
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the freed places are taken again")
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def test_an_evaluation_that_is_given_up_lets_the_version_go(
    start: Start, ledger: Ledger, jobs: JobStore, tmp_path: Path
) -> None:
    worker, store = await start(**LONG), WeightStore(tmp_path / "weights", JOB)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    evaluation = asyncio.create_task(worker.evaluate(0))
    await wait_until_async(lambda: evaluated(worker, 1), "it is under way")
    await train_one_step(ledger, store)
    evaluation.cancel()
    await wait_until_async(lambda: equals(version_of(jobs), 1), "the new version is applied")
    assert (await jobs.workers(JOB))[0].evaluation == worker._evaluator.progress
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def test_an_evaluation_waits_for_the_update_that_is_being_applied(
    start: Start, ledger: Ledger, tmp_path: Path, monkeypatch: Any
) -> None:
    """And for its version, but not for ever."""
    read, reading, release = PolicyModel.stage, threading.Event(), threading.Event()

    def stage(model: PolicyModel, folder: Path) -> StagedWeights:
        reading.set()
        release.wait(60)
        return read(model, folder)

    monkeypatch.setattr(PolicyModel, "stage", stage)
    worker, store = await start(), WeightStore(tmp_path / "weights", JOB)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    await train_one_step(ledger, store)
    await asyncio.to_thread(reading.wait, 30)
    evaluation = asyncio.create_task(worker.evaluate(0))
    await asyncio.sleep(0.2)
    assert worker._evaluator.progress is None
    release.set()
    assert (await evaluation).step == 1
    with pytest.raises(TimedOut, match="policy version 9 was waited for 0 s; the engine has 1"):
        async with worker._weight_sync.held(9, 0.1):
            raise AssertionError("it is not there")
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def evaluated(worker: RolloutWorker, completions: int) -> bool:
    progress = worker._evaluator.progress
    return progress is not None and completions <= progress[1] < LONG["eval_samples"]


def tokenizer_alone_ends(model: Path) -> Path:
    """The shipped model; its config.json and generation_config.json name another token."""
    shutil.copytree(ADDER / "model", model)
    for file in (model / "config.json", model / "generation_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 300}))
    return model


def other_model(folder: Path) -> None:
    """The shipped model with its likeliest tokens the least likely."""
    tensors = load_file(ADDER / "model" / "model.safetensors")
    tensors["model.norm.weight"] = -tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


async def test_a_reference_answer_where_the_tokenizer_would_not_cut_is_told_once_and_counted(
    start: Start, ledger: Ledger, jobs: JobStore
) -> None:
    worker = await start(grader={"type": "verifree", "name": "likelihood", "opening": "<answe"})
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)
    told = [event for _, event in await jobs.events(JOB) if "would not cut" in event.message]
    assert [event.level for event in told] == ["warn"]
    (beat,) = await jobs.workers(JOB)
    assert 1 <= beat.errors["unstable_boundary"] <= WINDOW * SETTINGS.group_size


async def test_an_evaluation_measures_what_its_grader_wants(start: Start, ledger: Ledger) -> None:
    likelihood = await (await start(grader={"type": "verifree", "name": "likelihood"})).evaluate(0)
    assert likelihood.reward_mean is not None
    assert 0 < likelihood.reward_mean < 1
    right = {"type": "function", "name": "right", "function": f"{ADDER / 'reward.py'}:correct"}
    entropy = await (await start("rollout-1", grader={"type": "entropy", "name": "sure"})).evaluate(0)
    assert entropy.reward_mean is not None
    assert entropy.reward_mean < 0
    verified = {"type": "entropy", "name": "sure", "evaluation": right}
    by_function = await (await start("rollout-2", grader=verified)).evaluate(0)
    plain = await (await start("rollout-3")).evaluate(0)
    assert by_function.reward_mean == plain.reward_mean


async def test_weights_that_are_published_again_are_waited_for(
    start: Start, ledger: Ledger, redis: Redis, tmp_path: Path
) -> None:
    """After a restart the ledger names weights that the machine's memory has lost, until the learner is back."""
    store = WeightStore(tmp_path / "weights", JOB)
    name = store.publish(3, 1, copy_model).name
    hidden = store.folder / "hidden"
    (store.folder / name).rename(hidden)
    await answer(redis.hset(f"headrace:{{{JOB}}}:ledger", mapping={"version": 3, "weights": name}))
    starting = asyncio.ensure_future(start())
    await asyncio.sleep(0.5)
    assert not starting.done()
    hidden.rename(store.folder / name)
    worker = await asyncio.wait_for(starting, 60)
    assert (await worker.evaluate(3)).step == 3


async def state(jobs: JobStore, wanted: str) -> bool:
    return [beat.state for beat in await jobs.workers(JOB)] == [wanted]


@pytest.mark.parametrize("fault", ["hangs", "damaged"])
async def test_an_update_that_cannot_be_had_is_given_up_and_a_later_one_is_applied(
    fault: str, start: Start, ledger: Ledger, jobs: JobStore, redis: Redis, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of a worker that just started, as one that returns does: it takes no work before it has the newest version."""
    store, read, release = WeightStore(tmp_path / "weights", JOB), PolicyModel.stage, threading.Event()

    def stage(model: PolicyModel, folder: Path) -> StagedWeights:
        if folder.name.startswith("v00000001"):
            release.wait(60)  # as on a file system that does not answer
        return read(model, folder)

    worker = await start(update_timeout=1.0)
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    if fault == "hangs":
        monkeypatch.setattr(PolicyModel, "stage", stage)
        await train_one_step(ledger, store)
    else:
        await train_one_step(ledger, store, write=lambda folder: (folder / "model.safetensors").write_bytes(b"cut"))
    await wait_until_async(lambda: gave_up(jobs), "the update is given up")
    assert (await jobs.workers(JOB))[0].version == 0
    assert (await ledger.counts()).admitted == WINDOW
    await train_one_step(ledger, store)
    await wait_until_async(lambda: equals(version_of(jobs), 2), "the next version is applied")
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full again")
    release.set()
    assert (await RecoveryCounters(redis, JOB).counts())[0]["abort_update"] >= 1
    (event, *_) = [e for _, e in await jobs.events(JOB) if "gave up the update" in e.message]
    assert event.data is not None
    (wait,) = event.data["waits"]
    assert (event.data["act"], wait["who"], wait["for"]) == ("abort_update", "rollout-0", "weights of version 1")
    assert (wait["seconds"] >= 1.0) == (fault == "hangs")
    await ledger.close("finished")
    assert await asyncio.wait_for(run, 60) == "closed"


async def gave_up(jobs: JobStore) -> bool:
    return any("gave up the update to version 1" in event.message for _, event in await jobs.events(JOB))


async def version_of(jobs: JobStore) -> int:
    beats = await jobs.workers(JOB)
    return beats[0].version if beats else -1


async def test_a_drained_worker_finishes_and_takes_no_more_until_it_is_released(
    start: Start, ledger: Ledger, jobs: JobStore, redis: Redis, tmp_path: Path
) -> None:
    worker = await start()
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    drains, store = WorkerDrains(redis, JOB), WeightStore(tmp_path / "weights", JOB)
    await drains.request("rollout-0", seconds=60)
    await wait_until_async(lambda: state(jobs, "drained"), "it says so")
    await train_one_step(ledger, store)
    assert (await worker.evaluate(1)).step == 1, "it stays up, follows the weights, and evaluates"
    assert (await ledger.counts()).admitted == WINDOW
    await drains.release("rollout-0")
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "it goes on")
    await wait_until_async(lambda: state(jobs, "running"), "it says so")
    await ledger.close("finished")
    assert await asyncio.wait_for(run, 30) == "closed"


async def test_a_drained_worker_whose_time_is_up_gives_back_what_it_holds(
    start: Start, ledger: Ledger, jobs: JobStore, redis: Redis, tmp_path: Path
) -> None:
    code = tmp_path / "slow.py"
    code.write_text("import time\n\ndef slow(completions):\n    time.sleep(60)\n")
    await WorkerDrains(redis, JOB).request("rollout-0", seconds=60)
    worker = await start(function=f"{code}:slow")  # a drain outlives the worker's process
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: state(jobs, "drained"), "it takes nothing")
    assert (await ledger.counts()).admitted == 0
    await WorkerDrains(redis, JOB).release("rollout-0")
    await wait_until_async(lambda: equals(leased(ledger), WINDOW), "it holds the window")
    await WorkerDrains(redis, JOB).request("rollout-0", seconds=0)
    await wait_until_async(lambda: state(jobs, "drained"), "it holds nothing any more")
    other = await ledger.admit("rollout-1", 0, 100, 60.0)
    assert len(other.leases) == WINDOW
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def leased(ledger: Ledger) -> int:
    return (await ledger.counts()).states["leased"]


async def test_a_changed_group_size_holds_for_groups_leased_from_its_version(
    start: Start, ledger: Ledger, jobs: JobStore, redis: Redis, tmp_path: Path
) -> None:
    worker = await start()
    run = asyncio.create_task(worker.run())
    await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the window is full")
    live = SettingsLog(redis, JOB, SETTINGS)
    assert await live.change({"group_size": 5}, "alice")
    await ledger.enlist()
    store = WeightStore(tmp_path / "weights", JOB)
    sizes = []
    for _ in range(3):
        groups = await train_one_step(ledger, store, changes=1)
        sizes += [len(g.completions) for g in groups]
        await wait_until_async(lambda: equals(queued(ledger), WINDOW), "the freed places are taken again")
    assert sizes == [3] * WINDOW + [5, 5]
    await ledger.close("enough")
    await asyncio.wait_for(run, 30)


async def test_a_worker_that_is_stopped_while_it_starts_gives_up_and_leaves_no_process(
    start: Start, ledger: Ledger, tmp_path: Path
) -> None:
    reward = tmp_path / "slow.py"
    reward.write_text("import time\ntime.sleep(50)\n\ndef slow(sample, item):\n    return 1.0\n")
    before = set(psutil.Process().children(recursive=True))
    worker = await start(function=f"{reward}:slow", ready=False)
    starting = asyncio.create_task(worker.start())

    async def importing() -> bool:
        return len(set(psutil.Process().children(recursive=True)) - before) > 0

    await wait_until_async(importing, "the reward's process is up")
    await asyncio.wait_for(worker.stop(), 10)
    with pytest.raises(InvalidState, match="rollout-0 was stopped while it started"):
        await starting
    assert set(psutil.Process().children(recursive=True)) <= before
    assert (await ledger.counts()).admitted == 0
