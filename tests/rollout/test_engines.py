"""The contract of `engines.base`, held for every engine by one suite; expected values come from a plain torch forward.

One engine a kind serves the whole session: each test that cares about weights begins by updating to the ones it needs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from headrace_core.errors import WeightsDamaged
from headrace_lab.waiting import wait_until_async
from headrace_rollout.engines import create
from headrace_rollout.engines.engine import EngineFailure, RequestRefused, Sampled, SamplingConfig, UpdateMode

from .engine_cases import MAX_RUNNING, Subject, Weights, cut_short, engine_config
from .tiny_model import CONTEXT, EOS, VOCABULARY, next_token_logprobs, of_tokens

pytestmark = pytest.mark.asyncio(loop_scope="session")

Tokens = npt.NDArray[np.int32]
TOLERANCE = 1e-4
EDGE = 1e-5
"""Of a nucleus: where the sum comes so close to `top_p`, one way to add in float32 has one token more than another."""
LIMIT = 60.0
"""Seconds any wait in this file may take."""


def sequence(prompt: Tokens, sampled: Sampled) -> Tokens:
    return np.concatenate([prompt, sampled.token_ids])


def assert_well_formed(sampled: Sampled, config: SamplingConfig) -> None:
    assert len(sampled.token_ids) == len(sampled.logprobs) == len(sampled.versions)
    assert sampled.token_ids.dtype == sampled.versions.dtype == np.int32
    assert sampled.logprobs.dtype == np.float32
    assert (np.diff(sampled.versions) >= 0).all()
    if sampled.finish_reason == "length":
        assert len(sampled.token_ids) == config.max_tokens
    ends = {EOS, *config.stop_token_ids}
    assert not ends & set(sampled.token_ids[:-1].tolist())
    assert (sampled.finish_reason == "stop") == (int(sampled.token_ids[-1]) in ends)


# --- sampling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
async def test_logprobs_are_those_of_the_distribution_sampled_from(
    subject: Subject, prompt: Tokens, temperature: float, top_p: float
) -> None:
    await subject.become("first")
    config = SamplingConfig(max_tokens=60, temperature=temperature, top_p=top_p)
    prompts = [prompt[: 4 + 3 * i] for i in range(6)]
    for given, sampled in zip(
        prompts, await asyncio.gather(*(subject.engine.generate(p, config) for p in prompts)), strict=True
    ):
        assert_well_formed(sampled, config)
        tokens = sequence(given, sampled)
        near = {top_p} if top_p == 1.0 else {top_p - EDGE, top_p, top_p + EDGE}
        expected = [next_token_logprobs(subject.weights["first"].model, tokens, temperature, p) for p in near]
        off = [np.abs(sampled.logprobs - of_tokens(each, tokens, len(given))) for each in expected]
        np.testing.assert_allclose(np.min(off, axis=0), 0.0, atol=TOLERANCE)


async def test_an_engine_that_was_not_started_for_schemas_holds_nothing_to_one(
    subject: Subject, prompt: Tokens
) -> None:
    """Training is sampled from the whole distribution: no worker starts its engine for them."""
    with pytest.raises(RequestRefused, match="without `json_schemas`"):
        await subject.engine.generate(prompt, SamplingConfig(max_tokens=4, json_schema='{"type": "object"}'))


async def test_tokens_are_told_as_they_are_sampled(subject: Subject, prompt: Tokens) -> None:
    await subject.become("first")
    told: list[tuple[int, float]] = []
    calls: list[int] = []

    def on_tokens(ids: Sequence[int], logprobs: Sequence[float]) -> None:
        calls.append(len(ids))
        told.extend(zip(ids, logprobs, strict=True))

    config = SamplingConfig(max_tokens=60, temperature=0.9, seed=3)
    sampled, untold = await asyncio.gather(
        subject.engine.generate(prompt, config, on_tokens), subject.engine.generate(prompt, config)
    )
    assert_well_formed(sampled, config)
    assert [token for token, _ in told] == sampled.token_ids.tolist()
    np.testing.assert_array_equal(np.array([logprob for _, logprob in told], np.float32), sampled.logprobs)
    assert len(calls) > 1, "all of it was told at the end"
    np.testing.assert_array_equal(sampled.token_ids, untold.token_ids, "being told changed what was sampled")


async def test_greedy_takes_the_likeliest_token_and_reports_its_untempered_logprob(
    subject: Subject, prompt: Tokens
) -> None:
    await subject.become("first")
    config = SamplingConfig(max_tokens=40, temperature=0.0)
    # Beside sampled requests: an engine may treat an all-greedy batch apart.
    sampled, *_ = await asyncio.gather(
        subject.engine.generate(prompt, config), subject.engine.generate(prompt, SamplingConfig(40, temperature=0.5))
    )
    tokens = sequence(prompt, sampled)
    expected = next_token_logprobs(subject.weights["first"].model, tokens)
    np.testing.assert_array_equal(sampled.token_ids, expected.argmax(-1)[len(prompt) - 1 : -1].numpy())
    np.testing.assert_allclose(sampled.logprobs, of_tokens(expected, tokens, len(prompt)), atol=TOLERANCE)


async def test_a_completion_ends_with_the_token_that_stopped_it(subject: Subject, prompt: Tokens) -> None:
    await subject.become("first")
    by_model = SamplingConfig(max_tokens=200, temperature=1.5)
    by_request = SamplingConfig(max_tokens=200, temperature=1.5, stop_token_ids=tuple(range(2, 12)))
    for config in (by_model, by_request):
        results = await asyncio.gather(*(subject.engine.generate(prompt, config) for _ in range(12)))
        for sampled in results:
            assert_well_formed(sampled, config)
        assert any(sampled.finish_reason == "stop" for sampled in results)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
async def test_entropy_and_certainty_are_those_of_the_distribution_sampled_from(
    subject: Subject, prompt: Tokens, temperature: float
) -> None:
    await subject.become("first")
    config = SamplingConfig(max_tokens=40, temperature=temperature, distribution=True)
    plain = SamplingConfig(max_tokens=40, temperature=1.3, top_p=0.8)
    beside, *measured = await asyncio.gather(
        *(subject.engine.generate(prompt[: 8 + i], config if i else plain) for i in range(4))
    )
    assert beside.entropies is beside.certainties is None
    assert_well_formed(beside, plain)
    for given, sampled in zip((prompt[: 9 + i] for i in range(3)), measured, strict=True):
        assert_well_formed(sampled, config)
        assert sampled.entropies is not None
        assert sampled.certainties is not None
        tokens = sequence(given, sampled)
        by = next_token_logprobs(subject.weights["first"].model, tokens, temperature or 1.0)
        np.testing.assert_allclose(sampled.logprobs, of_tokens(by, tokens, len(given)), atol=TOLERANCE)
        by = by[len(given) - 1 : -1]
        np.testing.assert_allclose(sampled.entropies, -(by.exp() * by).sum(-1), atol=TOLERANCE)
        np.testing.assert_allclose(sampled.certainties, -by.mean(-1) - np.log(VOCABULARY), atol=TOLERANCE)


# --- updates ----------------------------------------------------------------------------------------------------


async def update_in_flight(subject: Subject, prompt: Tokens, to: str, mode: UpdateMode) -> tuple[Sampled, int]:
    """A long completion with an update somewhere in its middle, and the version of the update.

    How far it is when the update falls is chance, so several are in flight and one that was cut is picked.
    """
    config = SamplingConfig(max_tokens=280, temperature=1.0)
    for _ in range(5):
        requests = [asyncio.create_task(subject.engine.generate(prompt, config)) for _ in range(12)]
        await subject.engine.generate(prompt, SamplingConfig(max_tokens=8, stop_token_ids=()))
        report = await subject.become(to, mode)
        results = await asyncio.wait_for(asyncio.gather(*requests), LIMIT)
        for sampled in results:
            assert_well_formed(sampled, config)
            if mode == "drain" or len(set(sampled.versions)) == 2:
                return sampled, report.version
        await subject.become("first")
    raise AssertionError("no completion was in flight at any of 5 updates")


@torch.no_grad()
def mixed_logprobs(subject: Subject, tokens: Tokens, boundary: int, old: int, new: int) -> torch.Tensor:
    """Distributions [len(tokens) - boundary, V] after tokens[boundary:], from a cache of tokens[:boundary] by `old`."""
    ids = torch.as_tensor(tokens, dtype=torch.long)[None]
    cache = subject.model(old)(ids[:, :boundary], use_cache=True).past_key_values
    logits = subject.model(new)(ids[:, boundary:], past_key_values=cache).logits[0]
    return logits.log_softmax(-1)


@pytest.mark.parametrize(("to", "mode"), [("second", "keep_kv"), ("second", "recompute"), ("adapter", "keep_kv")])
async def test_after_an_update_the_tail_is_distributed_by_the_new_weights(
    subject: Subject, prompt: Tokens, to: str, mode: UpdateMode
) -> None:
    await subject.become("first")
    old = subject.engine.version
    sampled, new = await update_in_flight(subject, prompt, to, mode)
    old = int(sampled.versions[0])
    assert sorted(set(sampled.versions.tolist())) == [old, new]
    cut = int((sampled.versions == old).sum())
    tokens = sequence(prompt, sampled)
    head = of_tokens(next_token_logprobs(subject.model(old), tokens), tokens, len(prompt))[:cut]
    np.testing.assert_allclose(sampled.logprobs[:cut], head, atol=TOLERANCE)
    # The token before the cut was sampled by the old weights; feeding it is the new weights' first act.
    boundary = len(prompt) + cut - 1
    if mode == "keep_kv":
        tail = of_tokens(mixed_logprobs(subject, tokens, boundary, old, new), tokens[boundary:], 1)
    else:
        tail = of_tokens(next_token_logprobs(subject.model(new), tokens), tokens, boundary + 1)
    np.testing.assert_allclose(sampled.logprobs[cut:], tail, atol=TOLERANCE)


async def test_drain_lets_requests_in_flight_end_under_the_old_weights(subject: Subject, prompt: Tokens) -> None:
    await subject.become("first")
    old = subject.engine.version
    sampled, new = await update_in_flight(subject, prompt, "second", "drain")
    assert set(sampled.versions.tolist()) == {old}
    after = await subject.engine.generate(prompt, SamplingConfig(max_tokens=4))
    assert set(after.versions.tolist()) == {new}


async def test_twenty_updates_under_load_lose_and_double_nothing(subject: Subject, prompt: Tokens) -> None:
    """Weights differ in the final norm only, so every token can be checked under the version it claims."""
    await subject.become("norm0")
    engine, first = subject.engine, subject.engine.version
    updating = True
    answered: list[tuple[int, Tokens, Sampled]] = []
    submitted = 0

    async def client(seed: int) -> None:
        nonlocal submitted
        chance = np.random.default_rng(seed)
        while updating:
            given = prompt[: chance.integers(3, len(prompt))]
            config = SamplingConfig(max_tokens=int(chance.integers(1, 120)))
            submitted, version = submitted + 1, engine.version
            sampled = await engine.generate(given, config)
            assert_well_formed(sampled, config)
            answered.append((version, given, sampled))

    clients = [asyncio.create_task(client(seed)) for seed in range(MAX_RUNNING + 4)]
    modes: list[UpdateMode] = ["keep_kv", "keep_kv", "recompute", "drain"]
    for index, mode in zip(range(20), itertools.cycle(modes), strict=False):
        report = await asyncio.wait_for(subject.become(f"norm{index % 3}", mode), LIMIT)
        assert report.version == engine.version == first + index + 1
    updating = False
    await asyncio.wait_for(asyncio.gather(*clients), LIMIT)
    assert len(answered) == submitted
    assert engine.running == 0
    assert {int(v) for _, _, sampled in answered for v in sampled.versions} >= set(range(first + 1, first + 20))
    for version, given, sampled in answered:
        assert sampled.versions[0] >= version
        check_each_token_under_its_version(subject, given, sampled)


def check_each_token_under_its_version(subject: Subject, prompt: Tokens, sampled: Sampled) -> None:
    tokens = sequence(prompt, sampled)
    for version in set(sampled.versions.tolist()):
        mine = sampled.versions == version
        expected = of_tokens(next_token_logprobs(subject.model(version), tokens), tokens, len(prompt))
        np.testing.assert_allclose(sampled.logprobs[mine], expected[mine], atol=TOLERANCE)


@pytest.mark.parametrize("to", ["second", "adapter"])
async def test_a_new_request_never_uses_a_prefix_cache_of_older_weights(subject: Subject, to: str) -> None:
    long_prompt = np.random.default_rng(9).integers(2, VOCABULARY, size=160, dtype=np.int32)
    greedy = SamplingConfig(max_tokens=8, temperature=0.0)
    await subject.become("first")
    await subject.engine.generate(long_prompt, greedy)
    await subject.become(to, "keep_kv")
    sampled = await subject.engine.generate(long_prompt, greedy)
    tokens = sequence(long_prompt, sampled)
    expected = of_tokens(next_token_logprobs(subject.weights[to].model, tokens), tokens, len(long_prompt))
    np.testing.assert_allclose(sampled.logprobs, expected, atol=TOLERANCE)


async def test_weights_that_cannot_be_loaded_leave_the_engine_as_it_was(
    subject: Subject, weights: dict[str, Weights], prompt: Tokens, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await subject.become("first")
    version = subject.engine.version
    empty, partial, no_adapter = (tmp_path_factory.mktemp(name) for name in ("empty", "partial", "no-adapter"))
    cut_short(subject.weights["second"].folder, partial)
    cut_short(subject.weights["adapter"].folder, no_adapter)
    whole = [] if subject.weights is weights else [weights["second"].folder]  # not for a slot
    for folder in (empty, partial, no_adapter, *whole):
        with pytest.raises(WeightsDamaged, match=folder.name):
            await subject.engine.update(version + 1, folder)
    sampled = await subject.engine.generate(prompt, SamplingConfig(max_tokens=8))
    assert subject.engine.version == version
    check_each_token_under_its_version(subject, prompt, sampled)


# --- scoring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_scores_are_those_of_a_forward(subject: Subject, prompt: Tokens, temperature: float) -> None:
    await subject.become("second")
    beside = [asyncio.create_task(subject.engine.generate(prompt, SamplingConfig(200, top_p=0.9))) for _ in range(6)]
    await subject.engine.generate(prompt, SamplingConfig(max_tokens=1))
    model = subject.weights["second"].model
    full = np.random.default_rng(3).integers(2, VOCABULARY, size=CONTEXT, dtype=np.int32)
    for tokens, start in ((full, 1), (full[:40], 39), (full[:70], 33)):
        scores = await subject.engine.score(tokens, start, temperature)
        assert scores.logprobs.dtype == np.float32
        assert scores.version == subject.engine.version
        expected = of_tokens(next_token_logprobs(model, tokens, temperature), tokens, start)
        np.testing.assert_allclose(scores.logprobs, expected, atol=TOLERANCE)
    await asyncio.wait_for(asyncio.gather(*beside), LIMIT)


async def test_a_scoring_during_updates_is_of_the_one_version_it_claims(subject: Subject) -> None:
    await subject.become("first")
    tokens = np.random.default_rng(4).integers(2, VOCABULARY, size=CONTEXT, dtype=np.int32)
    updating, answered = True, 0
    expected: dict[int, npt.NDArray[np.float32]] = {}

    async def client() -> None:
        nonlocal answered
        while updating:
            asked_at = subject.engine.version
            scored = await subject.engine.score(tokens, 8)
            assert asked_at <= scored.version <= subject.engine.version
            if scored.version not in expected:
                by = next_token_logprobs(subject.model(scored.version), tokens)
                expected[scored.version] = of_tokens(by, tokens, 8)
            np.testing.assert_allclose(scored.logprobs, expected[scored.version], atol=TOLERANCE)
            answered += 1

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for name in ("second", "first", "adapter"):
        already = answered
        await asyncio.wait_for(subject.become(name, "keep_kv"), LIMIT)
        async with asyncio.timeout(LIMIT):
            while answered < already + 8:  # noqa: ASYNC110 (those in flight at the update, and some after it)
                await asyncio.sleep(0)
    updating = False
    await asyncio.wait_for(asyncio.gather(*clients), LIMIT)
    assert len(expected) >= 3


# --- refusals, cancelling, life -----------------------------------------------------------------------------------


async def test_a_request_that_cannot_be_served_is_refused_and_the_engine_goes_on(
    subject: Subject, prompt: Tokens
) -> None:
    engine = subject.engine
    with pytest.raises(RequestRefused, match=str(CONTEXT)):
        await engine.generate(prompt, SamplingConfig(max_tokens=CONTEXT - len(prompt) + 1))
    with pytest.raises(RequestRefused):
        await engine.generate(np.asarray([5, VOCABULARY + 70], dtype=np.int32), SamplingConfig(max_tokens=4))
    with pytest.raises(RequestRefused):
        await engine.generate(prompt[:0], SamplingConfig(max_tokens=4))
    with pytest.raises(RequestRefused):
        await engine.generate(prompt, SamplingConfig(max_tokens=4, top_p=0.0))
    with pytest.raises(RequestRefused, match="set top_p to 1"):
        await engine.generate(prompt, SamplingConfig(max_tokens=4, top_p=0.9, distribution=True))
    with pytest.raises(RequestRefused):
        await engine.score(prompt, 0)
    assert engine.running == 0
    fits = SamplingConfig(max_tokens=CONTEXT - len(prompt))
    assert_well_formed(await engine.generate(prompt, fits), fits)


async def test_cancelling_a_request_frees_its_slot(subject: Subject, prompt: Tokens) -> None:
    await subject.become("first")
    engine = subject.engine
    long, short = SamplingConfig(max_tokens=CONTEXT - len(prompt)), SamplingConfig(max_tokens=2)

    async def fill() -> list[asyncio.Task[Sampled]]:
        tasks = [asyncio.create_task(engine.generate(prompt, long)) for _ in range(MAX_RUNNING)]
        await asyncio.sleep(0)
        return tasks

    began = time.monotonic()
    await asyncio.gather(*await fill())
    undisturbed = time.monotonic() - began

    tasks = await fill()
    assert engine.running == MAX_RUNNING
    for task in tasks:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
    began = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*(engine.generate(prompt, short) for _ in range(MAX_RUNNING))), LIMIT)
    assert time.monotonic() - began < undisturbed / 2
    assert engine.running == 0


async def test_the_engine_counts_its_busy_time(subject: Subject, prompt: Tokens) -> None:
    engine = subject.engine
    before = engine.busy_seconds
    assert engine.busy_seconds == before
    began = time.monotonic()
    await engine.generate(prompt, SamplingConfig(max_tokens=100))
    assert 0 < engine.busy_seconds - before <= time.monotonic() - began


async def test_the_engine_counts_tokens_while_requests_run(subject: Subject, prompt: Tokens) -> None:
    """Otherwise a group of long completions could not be told from an engine that hangs."""
    engine = subject.engine
    before = engine.sampled_tokens
    sampled = await engine.generate(prompt, SamplingConfig(max_tokens=10))
    done = before + len(sampled.token_ids)
    assert engine.sampled_tokens == done
    long = asyncio.create_task(engine.generate(prompt, SamplingConfig(max_tokens=250)))
    await wait_until_async(lambda: engine.sampled_tokens >= done + 5, "five tokens of a running request")
    assert not long.done()
    seen = engine.sampled_tokens
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    await wait_until_async(lambda: engine.running == 0, "no request runs")
    assert engine.sampled_tokens >= seen


@pytest.mark.parametrize("name", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
async def test_a_start_without_a_model_names_the_cause(
    name: str, weights: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("no-model-here")
    engine = create(name, dataclasses.replace(engine_config(weights), model=folder))
    with pytest.raises(EngineFailure, match="no-model-here"):
        await engine.start()
    await engine.close()


async def test_close_fails_the_requests_in_flight_and_those_after(subject: Subject, prompt: Tokens) -> None:
    """The last test of this engine: the session's fixture closes it again, which must be harmless."""
    # Greedy: a sampled request may draw its end-of-sequence token before the engine is closed.
    long = SamplingConfig(max_tokens=CONTEXT - len(prompt), temperature=0.0)
    requests = [asyncio.create_task(subject.engine.generate(prompt, long)) for _ in range(8)]
    await subject.engine.generate(prompt, SamplingConfig(max_tokens=1))
    await asyncio.wait_for(subject.engine.close(), LIMIT)
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), LIMIT)
    assert all(isinstance(outcome, EngineFailure) for outcome in outcomes)
    with pytest.raises(EngineFailure):
        await subject.engine.generate(prompt, long)
