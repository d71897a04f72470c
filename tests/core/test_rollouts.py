"""What is kept of steps for reading, on a real Redis: once, in order, within its bytes, chosen by ids alone."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from headrace_core.errors import Damaged
from headrace_core.jobs.rollout_records import (
    RecordedCompletion,
    Rollout,
    RolloutStore,
    TokenRole,
    chosen,
    floats,
    ints,
    pack,
    roles_of,
)
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.trajectory import F32, I32, U8

JOB = "ftjob-1"
PLENTY = 1_000_000


def rollout(step: int, group: int, tokens: int = 3) -> Rollout:
    completion = RecordedCompletion(
        token_ids=pack(np.arange(tokens), I32),
        versions=pack(np.full(tokens, step - 1), I32),
        logprobs=pack(np.full(tokens, -0.5), F32),
        importance=pack(np.full(tokens, np.nan), F32),
        roles=pack(np.full(tokens, TokenRole.TOO_OLD), U8),
        reward=None,
        trained_reward=None,
        components={"right": 1.0},
        advantage=None,
        finish_reason="stop",
        greedy=False,
    )
    return Rollout(group=group, step=step, row=7, attempt=1, prompt_ids=b"", completions=[completion] * 2, group_size=2)


async def ids(store: RolloutStore, **wanted: object) -> list[str]:
    return [r.id async for r in store.walk(**wanted)]  # type: ignore[arg-type]


@pytest.fixture
def store(redis: Redis) -> RolloutStore:
    return RolloutStore(redis, JOB)


async def test_a_group_comes_back_as_it_was_kept(store: RolloutStore) -> None:
    kept = rollout(3, 17)
    assert await store.add([kept], PLENTY) == 1
    found = await store.of_group(17)
    assert found == kept
    assert found is not None
    assert (found.id, found.version) == ("3-17", 2)
    completion = found.completions[1]
    assert ints(completion.versions).tolist() == [2, 2, 2]
    assert roles_of(completion.roles).tolist() == [TokenRole.TOO_OLD] * 3
    assert np.isnan(floats(completion.importance)).all()
    assert await store.of_group(16) is None


async def test_a_step_that_is_replayed_is_kept_once(store: RolloutStore) -> None:
    first, second = [rollout(1, 0), rollout(1, 2)], [rollout(2, 1), rollout(2, 5)]
    await store.add(first, PLENTY)
    await store.add(second[:1], PLENTY)  # the learner died here
    assert await store.add(first, PLENTY) == 0
    assert await store.add(second, PLENTY) == 1
    assert await ids(store, newest_first=False) == ["1-0", "1-2", "2-1", "2-5"]


async def test_the_oldest_go_when_the_bytes_do_not_suffice_and_do_not_come_back(
    store: RolloutStore, redis: Redis
) -> None:
    size = len(msgspec.msgpack.encode(rollout(1, 1)))
    limit = 3 * size + 2
    for step in range(1, 8):
        await store.add([rollout(step, step)], limit)
        kept = await run(redis.xrange(JobKeys(JOB).rollouts))
        assert sum(len(fields[b"data"]) for _, fields in kept) <= limit
    assert await ids(store) == ["7-7", "6-6", "5-5"]
    assert [await store.of_group(g) is None for g in (4, 5)] == [True, False]
    assert await store.add([rollout(3, 3)], limit) == 0
    assert set(await run(redis.hkeys(JobKeys(JOB).rollouts_index))) == {
        *(b"5", b"6", b"7"),
        *(b"bytes", b"last_step", b"last_group"),
    }


async def test_a_group_larger_than_everything_that_may_be_kept_is_not(store: RolloutStore) -> None:
    await store.add([rollout(1, 1)], 1000)
    assert await store.add([rollout(2, 2, tokens=500)], 1000) == 1
    assert await ids(store) == []
    await store.add([rollout(3, 3)], 1000)
    assert await ids(store) == ["3-3"]


async def test_walking_goes_either_way_from_any_place_through_one_step_or_all(store: RolloutStore) -> None:
    for step, groups in ((1, (0, 3)), (2, (1, 2)), (10, (4, 11))):
        await store.add([rollout(step, g) for g in groups], PLENTY)
    assert await ids(store) == ["10-11", "10-4", "2-2", "2-1", "1-3", "1-0"]
    assert await ids(store, after=(2, 2)) == ["2-1", "1-3", "1-0"]
    assert await ids(store, after=(2, 1), newest_first=False) == ["2-2", "10-4", "10-11"]
    assert await ids(store, after=(5, 0)) == ["2-2", "2-1", "1-3", "1-0"], "what a place held may be gone"
    assert await ids(store, step=2) == ["2-2", "2-1"]
    assert await ids(store, step=2, after=(2, 2)) == ["2-1"]
    assert await ids(store, step=2, after=(2, 1), newest_first=False) == ["2-2"]
    assert await ids(store, step=2, after=(10, 4)) == ["2-2", "2-1"]
    assert await ids(store, step=2, after=(1, 3)) == []
    assert await ids(store, step=2, after=(10, 4), newest_first=False) == []
    assert await ids(store, step=3) == []


def test_the_choice_is_the_same_each_time_and_every_place_of_a_step_is_as_likely() -> None:
    steps = [range(16 * s, 16 * s + 16) for s in range(1000)]
    picked = [chosen(step, 4) for step in steps]
    assert picked == [chosen(reversed(step), 4) for step in steps]
    assert all(len(p) == 4 and p == sorted(p) for p in picked)
    places = Counter(group % 16 for p in picked for group in p)
    assert max(abs(places[i] - 250) for i in range(16)) < 5 * (1000 * 0.25 * 0.75) ** 0.5
    assert chosen([5, 6], 4) == [5, 6]
    assert chosen([5, 6], 0) == []


async def test_what_is_no_kept_group_is_named_and_passed_over(store: RolloutStore, redis: Redis) -> None:
    await store.add([rollout(1, 5)], PLENTY)
    await run(redis.xadd(JobKeys(JOB).rollouts, {"data": b"\x93\x01"}, id="1-6"))
    await run(redis.hset(JobKeys(JOB).rollouts_index, "6", "1"))
    assert await ids(store) == ["1-5"]
    with pytest.raises(Damaged, match=r"rollouts 1-6 in Redis cannot be read: not a kept group.*restore"):
        await store.of_group(6)
