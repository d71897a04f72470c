"""The slot table: rows stay whole and without holes while requests come, end and go."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headrace_rollout.engines.engine import SamplingConfig
from headrace_rollout.engines.transformers.batch_slots import Generation, SlotTable, admission_pays

STOP = 1
ALL = slice(0, None)


def request(prompt: list[int], max_tokens: int = 8, **sampling: object) -> Generation:
    return Generation(np.array(prompt, np.int32), SamplingConfig(max_tokens, **sampling))  # type: ignore[arg-type]


def table(capacity: int = 4) -> SlotTable:
    return SlotTable(capacity, max_len=32, stop_ids=(STOP,), seed=0)


def append(slots: SlotTable, tokens: list[int], version: int = 0) -> list[int]:
    logprobs = -np.array(tokens, np.float32)
    entropies, certainties = -2 * logprobs, -3 * logprobs
    rows = slice(0, slots.running)
    return slots.append(rows, np.array(tokens, np.int64), logprobs, entropies, certainties, version).tolist()


def test_a_row_ends_with_its_stop_token_or_at_its_limit() -> None:
    slots = table()
    slots.add(request([5, 6]))
    slots.add(request([7], max_tokens=2))
    slots.add(request([8], stop_token_ids=(30, 31)))
    assert append(slots, [9, 9, 9]) == []
    assert append(slots, [STOP, 9, 31], version=3) == [0, 1, 2]
    first, second, third = (slots.sampled(row) for row in range(3))
    assert first.finish_reason == "stop"
    assert second.finish_reason == "length"
    assert third.finish_reason == "stop"
    assert first.token_ids.tolist() == [9, STOP]
    assert first.versions.tolist() == [0, 3]
    assert third.logprobs.tolist() == [-9.0, -31.0]


def test_the_stop_tokens_of_one_request_do_not_end_another() -> None:
    slots = table()
    slots.add(request([5], stop_token_ids=(30,)))
    slots.add(request([5]))
    assert append(slots, [29, 30]) == []
    slots.remove(np.array([0]))
    slots.add(request([5]))
    assert append(slots, [30, 30]) == []


def test_a_full_table_takes_no_more() -> None:
    slots = table(capacity=1)
    slots.add(request([5]))
    with pytest.raises(ValueError, match="all 1 rows"):
        slots.add(request([6]))


def test_moves_fill_the_holes_from_the_end() -> None:
    slots = table(capacity=5)
    requests = [request([10 + index]) for index in range(5)]
    for each in requests:
        slots.add(each)
    sources, destinations = slots.remove(np.array([0, 2, 4]))
    assert (sources.tolist(), destinations.tolist()) == ([3], [0])
    assert slots.requests == [requests[3], requests[1]]
    assert slots.tokens[:2, 0].tolist() == [13, 11]


@pytest.mark.parametrize("seed", range(5))
def test_every_request_gets_its_own_tokens_under_churn(seed: int) -> None:
    """A request with prompt [p] samples p only: however rows move, it ends once, with all its tokens and no other's."""
    chance = random.Random(seed)
    slots, waiting = table(capacity=6), [request([index], chance.randint(1, 9)) for index in range(2, 30)]
    lengths = {each.prompt[0]: each.sampling.max_tokens for each in waiting}
    ended: dict[int, list[int]] = {}
    while waiting or slots.running:
        while waiting and slots.running < slots.capacity and chance.random() < 0.7:
            slots.add(waiting.pop())
        rows = append(slots, [int(each.prompt[0]) for each in slots.requests])
        for row in rows:
            number = int(slots.requests[row].prompt[0])
            assert number not in ended
            ended[number] = slots.sampled(row).token_ids.tolist()
        slots.remove(np.array(rows, np.int64))
    assert ended == {number: [number] * length for number, length in lengths.items()}


def test_a_seeded_request_has_its_own_random_numbers() -> None:
    alone, crowded = table(), table()
    alone.add(request([5], seed=7))
    crowded.add(request([6]))
    crowded.add(request([5], seed=7))
    for _ in range(4):
        assert alone.uniforms(ALL)[0] == crowded.uniforms(ALL)[1] != crowded.uniforms(ALL)[0]
        append(alone, [9])
        append(crowded, [9, 9])


def test_admission_waits_for_company_but_not_for_ever() -> None:
    assert not admission_pays(running=0, candidates=0, steps_waited=100)
    assert admission_pays(running=0, candidates=1, steps_waited=0)
    assert not admission_pays(running=64, candidates=7, steps_waited=0)
    assert admission_pays(running=64, candidates=8, steps_waited=0)
    assert admission_pays(running=64, candidates=1, steps_waited=8)
