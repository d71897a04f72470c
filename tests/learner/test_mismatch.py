"""Engine and learner are held to the same model: what they say of the same tokens at the same weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from redis.asyncio import Redis

from headrace_core.concurrency import cancel
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.trajectory import Group
from headrace_learner.training.mismatch import Mismatch, MismatchWatch
from headrace_learner.training.step_metrics import MISMATCH
from headrace_learner.training.trainer import Trainer

from .bench import Bench, learner
from .cases import hyperparameters, random_group

Make = Callable[..., Trainer]


@torch.no_grad()
def sampled_by(trainer: Trainer, group: Group, off_by: float = 0.0) -> Group:
    """The group with log-probabilities of the policy itself, at temperature 0.7; each token's `off_by` more or less."""
    found = []
    for completion in group.completions:
        ids = np.concatenate([group.prompt_ids, completion.token_ids])
        every = torch.log_softmax(trainer.policy.model(input_ids=torch.tensor([ids.tolist()])).logits[0] / 0.7, -1)
        rows = range(len(group.prompt_ids) - 1, len(ids) - 1)
        logprobs = np.array([every[row, int(ids[row + 1])] for row in rows], np.float32)
        signs = np.where(np.arange(len(logprobs)) % 2, 1, -1).astype(np.float32)
        found.append(replace(completion, logprobs=logprobs + off_by * signs))
    return replace(group, completions=tuple(found))


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("proximal", ["recompute", "interpolate", "behaviour"])
def test_the_mismatch_of_an_engine_that_computes_the_same_is_rounding(
    make_trainer: Make, proximal: str, minibatches: int
) -> None:
    def of(off_by: float) -> float:
        trainer = make_trainer(temperature=0.7, proximal=proximal, minibatches=minibatches)
        groups = [sampled_by(trainer, random_group(i, rewards=[1.0, 0.0, 0.5, 0.2]), off_by) for i in range(4)]
        return trainer.step(groups, 0).measured.extra[MISMATCH]

    assert 0 <= of(0.0) < 1e-9
    assert of(0.1) == pytest.approx(0.1**2 / 2, rel=0.05)


def test_tokens_of_older_policies_and_what_follows_them_are_no_mismatch(make_trainer: Make) -> None:
    trainer = make_trainer()
    groups = [random_group(i, (0, 1), rewards=[1.0, 0.0, 0.5, 0.2]) for i in range(4)]
    assert MISMATCH not in trainer.step(groups, 1).measured.extra


async def test_an_engine_that_computes_another_model_ends_the_job(bench: Callable[..., Bench]) -> None:
    job = bench("another-model", max_mismatch=0.01)
    await job.open()
    async with learner(job.config) as worker:
        run = asyncio.create_task(worker.run())
        feeding = asyncio.create_task(job.feed(1))
        with pytest.raises(Mismatch, match="raise max_mismatch") as ended:
            await run
        await cancel([feeding])
    assert ended.value.code == "engine_mismatch"
    assert (await job.ledger.newest())[0] == 0, "nothing was learned from it"


@pytest.mark.parametrize(
    ("mode", "version", "device", "found", "told"),
    [
        *[("keep_kv", 0, "cpu", 5e-5, False), ("keep_kv", 0, "cpu", 5e-4, True), ("recompute", 7, "cpu", 5e-4, True)],
        *[("keep_kv", 0, "cuda", 5e-4, False), ("keep_kv", 0, "cuda", 5e-3, True)],
        *[("keep_kv", 7, "cpu", 5e-5, False), ("keep_kv", 7, "cpu", 5e-4, True)],
    ],
)
async def test_a_warning_is_told_once(
    redis: Redis, bench: Callable[..., Bench], mode: str, version: int, device: str, found: float, told: bool
) -> None:
    job = bench(f"warned-{mode}-{version}-{device}-{found}")
    await job.open()
    watch = MismatchWatch(JobStore(redis), job.job_id, hyperparameters(update_mode=mode, max_mismatch=0.01))
    for _ in range(2):
        await watch.look({MISMATCH: found}, version, device)
    await watch.look({}, version, device)
    events = [e for _, e in await job.jobs.events(job.job_id) if "nats a token" in e.message]
    assert len(events) == told
    assert all(e.level == "warn" for e in events)


def test_completions_over_a_cache_of_older_weights_are_no_mismatch(make_trainer: Make) -> None:
    """All tokens of one are of version 1; its group was admitted under version 0, which may have seen the prompt."""

    def measured(mode: str, admitted: int) -> bool:
        trainer = make_trainer(update_mode=mode)
        groups = [random_group(i, (1,), rewards=[1.0, 0.0, 0.5, 0.2]) for i in range(4)]
        return MISMATCH in trainer.step([replace(g, admitted_version=admitted) for g in groups], 1).measured.extra

    modes = ("keep_kv", "recompute", "drain")
    assert [measured(mode, 0) for mode in modes] == [False, True, True]
    assert [measured(mode, 1) for mode in modes] == [True, True, True]


@pytest.mark.parametrize("mode", ["keep_kv", "recompute", "drain"])
@pytest.mark.parametrize("found", [0.02, math.inf, math.nan])
async def test_every_version_is_held_to_the_limit(
    redis: Redis, bench: Callable[..., Bench], found: float, mode: str
) -> None:
    job = bench(f"held-{found}-{mode}")
    await job.open()
    watch = MismatchWatch(JobStore(redis), job.job_id, hyperparameters(update_mode=mode, max_mismatch=0.01))
    with pytest.raises(Mismatch, match="version 7"):
        await watch.look({MISMATCH: found}, 7, "cpu")
