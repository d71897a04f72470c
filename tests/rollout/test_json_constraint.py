"""Completions held to a JSON schema, by both engines, with the shipped adder, which has never seen JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import jsonschema
import llguidance.hf
import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace_lab.paths import ADDER
from headrace_rollout.end_of_text import end_tokens
from headrace_rollout.engines import create
from headrace_rollout.engines.engine import Engine, EngineConfig, RequestRefused, Sampled, SamplingConfig
from headrace_rollout.engines.json_constraint import MAX_CACHED, JsonConstraints
from headrace_rollout.prompts import Tokenizer

from .engine_cases import import_vllm

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = ADDER / "model"
CONTEXT = 256
SEEDS = 20
LIMIT = 60.0
ONE_LINE = {"x-guidance": {"whitespace_pattern": " ?"}}
"""As the gateway gives it."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": 0, "maximum": 999},
        "sure": {"type": "boolean"},
        "unit": {"enum": ["kg", "m", None]},
        "digits": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 6},
        "sub": {"$ref": "#/$defs/point"},
    },
    "required": ["answer", "sure", "unit", "digits", "note", "sub"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "object", "properties": {"x": {"const": 1}}, "additionalProperties": False}},
}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)],
)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "vllm":
        import_vllm()
    engine = create(
        request.param,
        EngineConfig(MODEL, max_model_len=CONTEXT, max_running=32, kv_cache_gib=0.125, json_schemas=True),
    )
    await engine.start()
    yield engine
    await engine.close()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def prompt() -> npt.NDArray[np.int32]:
    return tokenizer().prompt([{"role": "user", "content": "What is 37 + 56?"}])


def text_of(sampled: Sampled) -> str:
    return tokenizer().text(sampled.token_ids)


async def completed(engine: Engine, schema: dict[str, Any], seed: int, **options: Any) -> Sampled:
    settings: dict[str, Any] = {"max_tokens": 200, "seed": seed, "json_schema": json.dumps(schema | ONE_LINE)}
    sampling = SamplingConfig(**settings | options)
    return await asyncio.wait_for(engine.generate(prompt(), sampling), LIMIT)


async def test_what_is_sampled_parses_and_is_valid(engine: Engine) -> None:
    found = await asyncio.gather(*(completed(engine, SCHEMA, seed) for seed in range(SEEDS)))
    assert {sampled.finish_reason for sampled in found} == {"stop"}
    values = [json.loads(text_of(sampled)) for sampled in found]
    for value in values:
        jsonschema.validate(value, SCHEMA)
    assert len({json.dumps(value) for value in values}) > SEEDS / 2, "it is sampled, not filled in"
    greedy = await completed(engine, SCHEMA, 0, temperature=0.0)
    jsonschema.validate(json.loads(text_of(greedy)), SCHEMA)


async def test_any_object(engine: Engine) -> None:
    """Small ones end by themselves; the others are cut off at the limit, and say so."""
    found = await asyncio.gather(*(completed(engine, {"type": "object"}, seed) for seed in range(SEEDS)))
    ended = [json.loads(text_of(sampled)) for sampled in found if sampled.finish_reason == "stop"]
    assert ended
    assert all(isinstance(value, dict) for value in ended)
    assert all(text_of(sampled).startswith("{") for sampled in found)


async def test_one_that_reaches_its_length_is_cut_off_and_says_so(engine: Engine) -> None:
    sampled = await completed(engine, SCHEMA, 1, max_tokens=5)
    assert (sampled.finish_reason, len(sampled.token_ids)) == ("length", 5)
    assert text_of(sampled).startswith("{")


async def test_others_in_the_batch_are_not_held_to_it(engine: Engine) -> None:
    plain = SamplingConfig(max_tokens=40, seed=3)
    alone = await engine.generate(prompt(), plain)
    held = [completed(engine, SCHEMA, seed) for seed in range(4)]
    beside, *_ = await asyncio.gather(engine.generate(prompt(), plain), *held)
    assert beside.token_ids.tolist() == alone.token_ids.tolist()
    np.testing.assert_allclose(beside.logprobs, alone.logprobs, atol=1e-4)
    assert "{" not in text_of(alone)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
async def test_logprobs_are_of_the_distribution_over_what_the_schema_allows(engine: Engine, temperature: float) -> None:
    sampled = await completed(engine, SCHEMA, 5, temperature=temperature)
    expected = constrained_logprobs(sampled.token_ids, temperature or 1.0)
    np.testing.assert_allclose(sampled.logprobs, expected, atol=1e-4)
    free = (await engine.score(np.concatenate([prompt(), sampled.token_ids]), len(prompt()), temperature)).logprobs
    assert (sampled.logprobs >= free - 1e-4).all()
    assert (sampled.logprobs > free + 0.1).any(), "the adder would have written something else"


async def test_what_llguidance_does_not_know_is_refused_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(RequestRefused, match="uniqueItems"):
        await completed(engine, {"type": "array", "uniqueItems": True}, 0)
    assert (await completed(engine, {"const": 7}, 0)).finish_reason == "stop"


@torch.no_grad()
def constrained_logprobs(ids: npt.NDArray[np.int32], temperature: float) -> npt.NDArray[np.float64]:
    """By a plain forward, and a matcher of the test's own."""
    model = AutoModelForCausalLM.from_pretrained(MODEL).float().eval()
    start = len(prompt())
    whole = torch.from_numpy(np.concatenate([prompt(), ids])).long()
    logits = model(whole[None]).logits[0, start - 1 : -1].double() / temperature
    table = llguidance.hf.from_tokenizer(
        AutoTokenizer.from_pretrained(MODEL), n_vocab=logits.shape[1], eos_token=list(end_tokens(MODEL))
    )
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA | ONE_LINE))
    matcher, found = llguidance.LLMatcher(table, grammar), []
    for row, token in zip(logits, ids.tolist(), strict=True):
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=len(row)).astype(bool))
        found.append(float(row.masked_fill(~allowed, -torch.inf).log_softmax(-1)[token]))
        matcher.consume_token(token)
    return np.array(found)


async def test_a_step_beyond_the_limits_refuses_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create("transformers", EngineConfig(MODEL, max_model_len=CONTEXT, json_schemas=True))
    await engine.start()
    made = JsonConstraints.constraint

    def failing(self: JsonConstraints, schema: str) -> Any:
        constraint = made(self, schema)
        if "hostile" in schema:  # its fourth token leads out: the matcher is in its error state from then on
            seen: list[int] = []
            accept = constraint.accept
            constraint.accept = lambda token: accept(0 if seen.append(token) or len(seen) > 3 else token)  # type: ignore
        return constraint

    monkeypatch.setattr(JsonConstraints, "constraint", failing)
    try:
        good, bad = await asyncio.gather(
            completed(engine, SCHEMA, 1), completed(engine, SCHEMA | {"title": "hostile"}, 1), return_exceptions=True
        )
        assert isinstance(bad, RequestRefused)
        assert isinstance(good, Sampled)
        jsonschema.validate(json.loads(text_of(good)), SCHEMA)
        assert engine.running == 0
    finally:
        await engine.close()


async def test_a_schema_is_read_once_for_all_the_completions_that_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Counted:
        """In the place of llguidance's own, which it makes."""

        grammar_from_json_schema = staticmethod(llguidance.LLMatcher.grammar_from_json_schema)

        def __new__(cls, tokenizer: Any, grammar: str, **settings: Any) -> Any:
            read.append(grammar)
            return matcher(tokenizer, grammar, **settings)

    matcher = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", Counted)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    constraints = JsonConstraints(MODEL, len(tokenizer), end_tokens(MODEL))
    schema = json.dumps(SCHEMA | ONE_LINE)
    made = await asyncio.gather(*(asyncio.to_thread(constraints.constraint, schema) for _ in range(16)))
    assert len(read) == 1
    first, other = (torch.zeros(len(tokenizer)) for _ in range(2))
    made[0].restrict(first)
    made[0].accept(int(first.argmax()))
    made[0].restrict(first)
    made[1].restrict(other)
    assert not torch.equal(first, other), "each is at its own place"
    for number in range(MAX_CACHED):
        constraints.constraint(json.dumps({"const": number}))
    constraints.constraint(json.dumps({"const": 0}))
    assert len(read) == 1 + MAX_CACHED
    constraints.constraint(schema)
    assert len(read) == 2 + MAX_CACHED, "the one that was not asked for the longest was forgotten"
