"""`score_model` and `label_model`: what the judge is asked, and how it is read. A real server stands for the judge;
`test_real_judge` asks vLLM."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_lab.paths import ROOT
from headrace_lab.rewards import started
from headrace_rewards.protocol import Reward, Sample
from headrace_rewards.registry import build, validate

from .http_server import Answerer, Asked, Reply, Server, serving

KEY = "sk-s3cret"
SCORE: dict[str, Any] = {
    "type": "score_model",
    "name": "good",
    "model": "judge-1",
    "input": [
        {"role": "developer", "content": "Grade the answer."},
        {"role": "user", "content": "Right is {{ item.answer }}, given was {{ sample.output_text }}."},
    ],
}
LABEL: dict[str, Any] = {
    **SCORE,
    "type": "label_model",
    "labels": ["good", "fair", "poor"],
    "passing_labels": ["good", "fair"],
}


def completion(content: Any, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **fields}
    return {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


def graded(result: Any) -> Reply:
    return Reply(completion(json.dumps({"result": result})))


def saying(result: Any) -> Answerer:
    return lambda _: graded(result)


def last_word(asked: Asked) -> str:
    """The completion, which the question ends with."""
    text: str = asked.body["messages"][-1]["content"]
    return text.rpartition(" ")[2].removesuffix(".")


@asynccontextmanager
async def asking(
    answer: Answerer, grader: dict[str, Any], key: str | None = KEY
) -> AsyncIterator[tuple[Reward, Server]]:
    async with serving(answer) as server:
        reward = build(grader, RewardPermissions(judge_url=f"{server.url}/v1/", judge_key=key))
        async with started(reward):
            yield reward, server


def group(*texts: str) -> list[Sample]:
    return [Sample(text, {"answer": 42}, [{"role": "user", "content": "6*7?"}]) for text in texts]


def failure(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


async def test_what_a_judge_is_asked() -> None:
    sampling = {"temperature": 0, "seed": 7, "max_completions_tokens": 50, "top_p": 0.9, "reasoning_effort": "low"}
    async with asking(saying(0.5), {**SCORE, "range": [-1, 1], "sampling_params": sampling}) as (reward, server):
        assert await reward.score(group("41")) == [Score(0.5)]
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    result = {"type": "number", "minimum": -1.0, "maximum": 1.0}
    text = {"type": "string"}
    step = {
        "type": "object",
        "properties": {"description": text, "conclusion": text},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": step}, "result": result},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }
    assert asked.body == {
        "model": "judge-1",
        "messages": [
            {"role": "system", "content": "Grade the answer."},
            {"role": "user", "content": "Right is 42, given was 41."},
        ],
        "temperature": 0.0,
        "seed": 7,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "max_completion_tokens": 50,
        "response_format": {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}},
    }


async def test_a_judge_that_writes_its_steps_first() -> None:
    """As the cookbook's judges do."""
    steps = [{"description": "Compare.", "conclusion": "They differ by 1."}]
    content = [
        {"type": "text", "text": "{{ sample.output_text }}"},
        {"type": "input_text", "text": "{{ item.answer }}"},
    ]
    grader = {**SCORE, "input": [{"role": "user", "content": content}], "pass_threshold": 0.75}
    answer = Reply(completion(json.dumps({"steps": steps, "result": 0.5})))
    async with asking(lambda _: answer, grader) as (reward, server):
        assert await reward.score(group("41")) == [Score(0.5)]
    assert server.asked[0].body["messages"] == [{"role": "user", "content": "41\n42"}]


@pytest.mark.parametrize(
    ("fields", "high"),
    [
        ({}, 0.5),
        ({"range": [0, 10]}, 5.0),
        ({"range": [0, 10], "pass_threshold": 7}, 7.0),
        ({"pass_threshold": 0}, 0.0),
    ],
)
def test_from_where_on_a_score_counts_as_high(fields: dict[str, Any], high: float) -> None:
    assert validate({**SCORE, **fields}).high_from() == high
    held = validate({"type": "audited", "name": "a", "grader": {**SCORE, **fields}, "audit": SCORE})
    assert held.high_from() == high


async def test_without_a_key_no_header_is_sent() -> None:
    async with asking(saying(1), SCORE, key=None) as (reward, server):
        await reward.score(group("a"))
    assert "authorization" not in server.asked[0].headers


async def test_content_may_be_blocks() -> None:
    blocks = [{"type": "input_text", "text": "{{ item.answer }}"}, "b", {"type": "output_text", "text": "c"}]
    message = {"type": "message", "role": "user", "content": blocks}
    single = {"role": "assistant", "content": {"type": "output_text", "text": "{{ sample.output_text }}"}}
    async with asking(saying(1), {**SCORE, "input": [message, single]}) as (reward, server):
        await reward.score(group("a"))
    assert [message["content"] for message in server.asked[0].body["messages"]] == ["42\nb\nc", "a"]


async def test_each_completion_gets_its_own_score() -> None:
    def judge(asked: Asked) -> Reply:
        return graded(float(last_word(asked)))

    async with asking(judge, {**SCORE, "range": [0, 100]}) as (reward, _):
        assert await reward.score(group("1", "22", "3.5")) == [Score(1.0), Score(22.0), Score(3.5)]


async def test_labels() -> None:
    def judge(asked: Asked) -> Reply:
        return graded(last_word(asked))

    async with asking(judge, LABEL) as (reward, server):
        good, fair, poor, unknown = await reward.score(group("good", "fair", "poor", "none"))
    assert (good, fair, poor) == (Score(1.0), Score(1.0), Score(0.0))
    assert failure(unknown) == Failure("invalid_value", "the judge's label 'none' is none of the labels")
    schema = server.asked[0].body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "string", "enum": ["good", "fair", "poor"]}


@pytest.mark.parametrize("result", [1.5, -0.1, 1e300])
async def test_a_score_out_of_range_is_no_score(result: float) -> None:
    async with asking(saying(result), SCORE) as (reward, _):
        fault = failure((await reward.score(group("a")))[0])
    assert fault.kind == "invalid_value"
    assert "outside of 0 to 1" in fault.message


CUT = completion('{"result": 0.5')
CUT["choices"][0]["finish_reason"] = "length"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (completion("0.5"), "wrote no"),
        (completion('{"score": 0.5}'), "wrote no"),
        (completion('{"result": "0.5"}'), "wrote no"),
        (completion('{"result": true}'), "wrote no"),
        (completion('{"result": NaN}'), "wrote no"),
        (completion(None), "wrote no"),
        (CUT, "before its limit of tokens"),
        (completion(None, refusal="I will not"), "refused: I will not"),
        ({"choices": []}, "no chat completion"),
        ({"object": "error"}, "no chat completion"),
        (["x"], "no chat completion"),
    ],
)
async def test_a_judge_that_does_not_keep_to_the_schema(answer: Any, says: str) -> None:
    async with asking(lambda _: Reply(answer), SCORE) as (reward, _):
        fault = failure((await reward.score(group("a")))[0])
    assert fault.kind == "bad_output"
    assert says in fault.message


async def test_a_row_without_what_the_question_asks_for() -> None:
    async with asking(saying(1), SCORE) as (reward, server):
        lacking, other = await reward.score([Sample("a", {}), *group("b")])
        assert failure((await reward.score(group("\ud800")))[0]).kind == "bad_input"
    assert failure(lacking).kind == "bad_input"
    assert other == Score(1.0)
    assert len(server.asked) == 1


async def test_the_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)

    def repeats(asked: Asked) -> Reply:
        if asked.body["messages"][1]["content"].endswith("1."):
            return Reply({"error": {"message": f"Incorrect key {KEY}"}}, 401)
        return Reply(completion(json.dumps({"result": f"{asked.headers['authorization']} {KEY}"})))

    async with asking(repeats, LABEL) as (reward, _):
        first, second = await reward.score(group("1", "2"))
        assert "Incorrect key ***" in failure(first).message
        assert failure(second).kind == "invalid_value"
        rules = RewardPermissions(judge_url="http://a/v1", judge_key=KEY)
        assert "judge_url='http://a/v1'" in repr(rules)
        assert KEY not in f"{first} {second} {reward!r} {rules!r} {rules!s} {caplog.text}"


async def test_close_ends_what_is_in_flight() -> None:
    arrived = asyncio.Event()

    async def never(_: Asked) -> Reply:
        arrived.set()
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    async with asking(never, SCORE) as (reward, _):
        scoring = asyncio.create_task(reward.score(group(*(["a"] * 40))))
        await arrived.wait()
        await reward.close()
        assert {failure(outcome).kind for outcome in await scoring} == {"unavailable"}


async def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    arrived = asyncio.Event()

    async def never(_: Asked) -> Reply:
        arrived.set()
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    async with asking(never, SCORE) as (reward, _):
        scoring = asyncio.create_task(reward.score(group("a")))
        await arrived.wait()
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring


@pytest.mark.parametrize("grader", [SCORE, LABEL], ids=lambda grader: grader["type"])
def test_without_a_judge_they_are_refused(grader: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="HEADRACE_JUDGE_URL") as refused:
        build(grader)
    assert refused.value.param == "grader.type"
    with pytest.raises(InvalidRequest, match="HEADRACE_JUDGE_URL: an address begins with"):
        build(grader, RewardPermissions(judge_url="judge:8000"))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "grader.input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "grader.input.0.role"),
        ({"range": [1, 0]}, "grader.range"),
        ({"range": [0, "inf"]}, "grader.range"),
        ({"sampling_params": {"temperatur": 1}}, "grader.sampling_params.temperatur"),
        ({"model": ""}, "grader.model"),
    ],
)
def test_descriptions_that_are_refused(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate({**SCORE, **change})
    assert refused.value.param == param


def test_templates_and_blocks_are_checked() -> None:
    for content in ("{{ item.x", {"type": "input_image", "image_url": "http://x/"}):
        with pytest.raises(InvalidRequest, match=r"grader\.input\.0\.content"):
            validate({**SCORE, "input": [{"role": "user", "content": content}]})


def test_passing_labels_are_labels() -> None:
    with pytest.raises(InvalidRequest, match="superb"):
        validate({**LABEL, "passing_labels": ["good", "superb"]})


@pytest.mark.parametrize("grader", [SCORE, LABEL], ids=lambda grader: grader["type"])
def test_a_dumped_description_means_the_same(grader: dict[str, Any]) -> None:
    spec = validate(grader)
    assert validate(json.loads(json.dumps(spec.model_dump()))) == spec


def test_the_documented_examples_are_graders() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", (ROOT / "docs" / "rewards.md").read_text(), re.MULTILINE | re.DOTALL)
    examples = {block["type"]: block for block in map(json.loads, blocks) if "type" in block}
    for kind in ("endpoint", "score_model", "label_model"):
        assert validate(examples[kind]).type == kind
