"""What the learner keeps of a step: the figures that its loss used, and each step once, also across a replay."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from redis.asyncio import Redis
from transformers import AutoModelForCausalLM

from headrace_core.jobs.rollout_records import Rollout, RolloutStore, TokenRole, chosen, floats, ints, roles_of
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.trajectory import NO_VERSION, Group, Role
from headrace_learner.rollout_recorder import rollouts
from headrace_learner.training.trainer import Trainer
from headrace_learner.worker import LearnerWorker

from . import oracle
from .bench import BATCH, STEPS, Bench, train_whole
from .cases import answered, disturb, eventful_group, hyperparameters, likely, random_group

VERSION = 3
SETTINGS = {"max_staleness": 1, "temperature": 0.7, "minibatches": 2, "group_size": 5, "importance_cap": 1.5}


def kept(trainer: Trainer, groups: list[Group], count: int = 64) -> list[Rollout]:
    return rollouts(groups, trainer.step(groups, VERSION), VERSION + 1, count)


def test_weights_and_advantages_are_those_of_the_loss(make_trainer: Callable[..., Trainer]) -> None:
    groups = [answered(eventful_group(i)) for i in range(4)]
    settings = {**SETTINGS, "kl_coefficient": 0.2}  # a penalty: advantages differ, and nothing is left uncomputed
    trainer = make_trainer(**settings)
    disturb(trainer.policy.model)
    base = AutoModelForCausalLM.from_pretrained(trainer.policy.folder, dtype=torch.float32)
    models = oracle.Models(copy.deepcopy(trainer.policy.model), base)
    expected = oracle.read(groups, VERSION, s := hyperparameters(**settings), models)
    weights = 0
    for group, found, step in zip(groups, kept(trainer, groups), expected, strict=True):
        rewarded = [f for f in found.completions if f.reward is not None and not f.greedy]
        for completion, sampled in zip(rewarded, step, strict=True):
            tokens = sorted([*sampled.tokens, *sampled.answer], key=lambda t: t.place)
            trained = np.flatnonzero(roles_of(completion.roles) == TokenRole.TRAINED)
            assert (trained + len(group.prompt_ids)).tolist() == [t.place for t in tokens]
            ratios = [
                1.0 if t in sampled.answer else min(float(np.exp(t.before - t.behaviour)), s.importance_cap)
                for t in tokens
            ]
            assert floats(completion.importance)[trained] == pytest.approx(ratios, rel=1e-3)
            assert np.isnan(np.delete(floats(completion.importance), trained)).all()
            weights += len(set(ratios))
            if sampled.tokens:
                assert completion.advantage == pytest.approx(fmean(t.advantage for t in sampled.tokens), abs=2e-4)
            else:
                assert completion.advantage is None
    assert weights > 40


def test_a_reward_computed_anew_stands_beside_the_one_that_was_given(make_trainer: Callable[..., Trainer]) -> None:
    groups = [likely(answered(eventful_group(i)), "product") for i in range(2)]
    trainer = make_trainer(**SETTINGS | {"algorithm": "remax"})
    disturb(trainer.policy.model)
    base = AutoModelForCausalLM.from_pretrained(trainer.policy.folder, dtype=torch.float32)
    models = oracle.Models(copy.deepcopy(trainer.policy.model), base)
    step = oracle.read(groups, VERSION, hyperparameters(**SETTINGS, algorithm="remax"), models)
    changed = 0
    for group, found, expected in zip(groups, kept(trainer, groups), step, strict=True):
        *sampled, greedy = found.completions
        assert [c.reward for c in sampled] == [c.reward for c in group.completions]
        rewarded = [c for c in sampled if c.reward is not None]
        assert [c.trained_reward for c in rewarded] == pytest.approx([e.reward for e in expected], rel=1e-4)
        assert all(c.trained_reward is None for c in sampled if c.reward is None)
        assert group.greedy is not None
        assert greedy.reward == group.greedy.reward != greedy.trained_reward
        assert greedy.trained_reward == pytest.approx(expected[0].greedy, rel=1e-4)
        changed += sum(c.trained_reward != c.reward for c in rewarded)
    assert 0 < changed < sum(map(len, step)), "the answers of the version that is updated stay as they are"


def test_every_token_says_why_it_is_not_in_the_gradient(make_trainer: Callable[..., Trainer]) -> None:
    group = eventful_group(1)
    noted = [replace(c, notes={"said": f"number {n}"}) for n, c in enumerate(group.completions)]
    group = replace(group, completions=tuple(noted))
    (found,) = kept(make_trainer(**SETTINGS, algorithm="grpo"), [group])
    assert found.group_size == len(group.completions) == len(found.completions) - 1
    seen = set()
    for completion, record in zip(group.completions, found.completions, strict=False):
        parts = roles_of(record.roles).tolist()
        seen |= set(parts)
        for i, part in enumerate(parts):
            if completion.reward is None:
                assert part == TokenRole.NO_REWARD
            elif completion.versions[i] == NO_VERSION or completion.roles[i] == Role.ENVIRONMENT:
                assert part == TokenRole.NOT_SAMPLED
            elif completion.loss_weights[i] == 0:
                assert part == TokenRole.ZERO_WEIGHT
            else:
                assert part == (TokenRole.TOO_OLD if VERSION - completion.versions[i] > 1 else TokenRole.TRAINED)
        assert ints(record.token_ids).tolist() == completion.token_ids.tolist()
        assert np.array_equal(floats(record.logprobs), completion.logprobs, equal_nan=True)
        assert (record.reward, record.components) == (completion.reward, completion.components)
        assert record.notes == completion.notes
    assert seen == {
        TokenRole.TRAINED,
        TokenRole.TOO_OLD,
        TokenRole.ZERO_WEIGHT,
        TokenRole.NOT_SAMPLED,
        TokenRole.NO_REWARD,
    }
    greedy = found.completions[-1]
    assert greedy.greedy
    assert set(roles_of(greedy.roles)) == {TokenRole.GREEDY}
    assert greedy.advantage is None


def test_a_group_of_equal_rewards_has_no_weights_because_none_were_computed(
    make_trainer: Callable[..., Trainer],
) -> None:
    alike, differing = random_group(0, (VERSION,), rewards=[1.0] * 4), random_group(1, (VERSION,), rewards=[1, 0, 1, 0])
    found = kept(make_trainer(algorithm="grpo"), [alike, differing])
    computed = [[np.isfinite(floats(c.importance)).all() for c in r.completions] for r in found]
    assert computed == [[False] * 4, [True] * 4]
    assert [c.advantage for c in found[0].completions] == [0.0] * 4


def test_as_many_groups_are_kept_as_the_job_wants_and_the_first_completions_of_large_ones(
    make_trainer: Callable[..., Trainer],
) -> None:
    groups = [random_group(i, (VERSION,), completions=40) for i in range(4)]
    found = kept(make_trainer(), groups, count=2)
    assert [r.group for r in found] == chosen(range(4), 2)
    assert {(r.group_size, len(r.completions)) for r in found} == {(40, 32)}
    first = groups[found[0].group].completions[0]
    assert ints(found[0].completions[0].token_ids).tolist() == first.token_ids.tolist()


async def read(redis: Redis, job: Bench) -> list[Rollout]:
    return [r async for r in RolloutStore(redis, job.job_id).walk(newest_first=False)]


async def test_every_step_is_kept_once_however_its_learner_dies(
    bench: Callable[..., Bench], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench("whole-kept", checkpoint_interval=2, keep_rollouts=2)
    await train_whole(whole)
    expected = await read(redis, whole)
    steps = await whole.ledger.steps()
    assert [r.id for r in expected] == [f"{s.version + 1}-{g}" for s in steps for g in chosen(s.groups, 2)]
    assert len(expected) == 2 * STEPS

    job = bench("dying-kept", checkpoint_interval=2, keep_rollouts=2, snapshot_every=0)
    await job.open()
    first = LearnerWorker.from_config(job.config)
    await first.start()
    with monkeypatch.context() as patched:
        add = RolloutStore.add

        async def broken(self: RolloutStore, kept: list[Rollout], most: int) -> int:
            return await add(self, kept[: 1 if kept[0].step == 3 else 2], most)  # a write that was cut off in step 3

        patched.setattr(RolloutStore, "add", broken)
        running = asyncio.create_task(first.run())
        await job.feed(3)  # checkpoint at 2, and a settled step beyond it
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await first.stop()
    second = LearnerWorker.from_config(job.config)
    assert (await second.start())["replayed_steps"] == 1
    assert [r.id for r in await read(redis, job)] == [r.id for r in expected[:6]]
    await asyncio.gather(second.run(), job.feed(STEPS))
    await second.stop()
    assert await read(redis, job) == expected


async def test_nothing_is_kept_of_a_step_that_is_not_settled_or_of_a_job_that_wants_nothing(
    bench: Callable[..., Bench], redis: Redis
) -> None:
    unwanted = bench("unwanted", keep_rollouts=0)
    await train_whole(unwanted)
    assert await read(redis, unwanted) == []
    fenced = bench("fenced-kept")
    await fenced.open()
    worker = LearnerWorker.from_config(fenced.config)
    await worker.start()
    admission = await fenced.ledger.admit("rollout-0", 0, BATCH, 60)
    for lease in admission.leases:
        await fenced.ledger.commit(lease, random_group(lease.group_id))
    settle = worker._ledger.settle

    async def late(*args: object) -> object:
        await fenced.ledger.enlist()  # another learner took over while this one trained
        return await settle(*args)  # type: ignore[arg-type]

    worker._ledger.settle = late  # type: ignore[method-assign,assignment]
    with pytest.raises(Exception, match="another learner has taken over"):
        await worker.run()
    await worker.stop()
    assert await run(redis.exists(JobKeys(fenced.job_id).rollouts)) == 0
