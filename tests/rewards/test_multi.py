"""`multi`: one number from several graders; what fails, and what does not apply, stays apart from zero."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.graders.multi import MAX_GRADERS, Multi, MultiSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build, validate


def check(name: str, reference: str) -> dict[str, str]:
    return {
        "type": "string_check",
        "name": name,
        "input": "{{ sample.output_text }}",
        "reference": reference,
        "operation": "like",
    }


def multi(graders: Any, formula: str) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}


BOTH = {"word": check("w", "{{ item.word }}"), "mark": check("m", "!")}


async def test_the_formula_over_the_graders() -> None:
    reward = build(multi(BOTH, "0.75 * word + 0.25 * mark"))
    outcomes = await reward.score([Sample(text, {"word": "yes"}) for text in ("yes", "yes!", "no!")])
    assert outcomes == [
        Score(0.75, {"word": 1.0, "mark": 0.0}),
        Score(1.0, {"word": 1.0, "mark": 1.0}),
        Score(0.25, {"word": 0.0, "mark": 1.0}),
    ]


async def test_a_failed_grader_fails_its_sample_and_is_named() -> None:
    reward = build(multi(BOTH, "mark"))
    failed, scored = await reward.score([Sample("yes!"), Sample("yes!", {"word": "yes"})])
    assert failed == Failure("bad_input", "grader 'word': there is no 'item.word'; 'item' has no keys")
    assert scored == Score(1.0, {"word": 1.0, "mark": 1.0})


async def test_what_the_formula_cannot_compute_fails() -> None:
    (outcome,) = await build(multi(BOTH, "word / mark")).score([Sample("yes", {"word": "yes"})])
    assert outcome == Failure("invalid_value", "'word / mark', of 1, 0: float division by zero")


async def test_a_result_beyond_every_score_fails() -> None:
    (outcome,) = await build(multi(BOTH, "word * 1e200")).score([Sample("yes", {"word": "yes"})])
    assert outcome == Failure(
        "invalid_value", "the result of the formula is 1e+200, which is beyond ±1e+15: scale the reward"
    )


class Fixed:
    """A reward with one answer, which comes when all have met at `meeting`; it remembers its life."""

    def __init__(
        self, outcome: Outcome, meeting: asyncio.Barrier | None = None, fault: Exception | None = None
    ) -> None:
        self.life: list[str] = []
        self._outcome, self._meeting, self._fault = outcome, meeting, fault

    async def start(self) -> None:
        if self._fault:
            raise self._fault
        self.life.append("start")

    async def score(self, samples: Any) -> list[Outcome]:
        if self._meeting:
            await asyncio.wait_for(self._meeting.wait(), timeout=10)
        return [self._outcome] * len(samples)

    async def close(self) -> None:
        self.life.append("close")


def combined(formula: str, **graders: Fixed) -> Multi:
    spec = validate(multi({name: check(name, "!") for name in graders}, formula))
    assert isinstance(spec, MultiSpec)
    return Multi(spec, graders)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a + b", 4.0),
        ("b + a", 4.0),
        ("0.5 * a + 0.5 * b", 2.0),
        ("a - b", 4.0),
        ("b - a", -4.0),
        ("-b + a", 4.0),
        ("2 * a", 8.0),
        ("a + a * b", 4.0),
        ("a + 1 / b", 4.0),
        ("a + sqrt(b) ^ 2", 4.0),
        ("min(a, b, 9)", 4.0),
        ("max(b, a) + 0.5", 4.5),
        ("a + min(b, 1)", 4.0),
        ("a + max(b, 1, 2) / 2", 4.0),
        ("0.5 * (b + 1) + 0.5 * a", 2.0),
        ("b + 1 + a", 5.0),
        ("a - (b + 1)", 3.0),
        ("a + max(b + 1, -9)", 4.0),
        ("a + max(b + 1, a)", 8.0),
        ("a * (1 - b)", None),
        ("a * b", None),
        ("b", None),
        ("b + 1", None),
        ("a * b + 1", None),
        ("min(b, 1)", None),
        ("log(b)", None),
        ("1", 1.0),
    ],
)
async def test_what_does_not_apply_is_left_out_of_the_formula(formula: str, value: float | None) -> None:
    reward = combined(formula, a=Fixed(Score(4.0)), b=Fixed(NotApplicable()))
    expected = NotApplicable() if value is None else Score(value, {"a": 4.0})
    assert await reward.score([Sample("x")]) == [expected]


async def test_graders_of_several_tasks_each_apply_to_their_own_rows(tmp_path: Path) -> None:
    """TRL's pattern for data of several tasks: each function returns None for the rows of the others."""
    (tmp_path / "user.py").write_text(
        "def of(task):\n"
        "    def score(completions, task_name, **kwargs):\n"
        "        pairs = zip(completions, task_name)\n"
        "        return [(1.0 if c == 'yes' else -1.0) if t == task else None for c, t in pairs]\n"
        "    return score\n"
        "maths, code = of('maths'), of('code')\n"
    )
    graders = {
        name: {"type": "function", "name": name, "function": f"{tmp_path}/user.py:{name}"} for name in ("maths", "code")
    }
    reward = build(multi(graders, "maths + code"))
    rows = [("yes", "maths"), ("no", "maths"), ("yes", "code"), ("no", "code"), ("yes", "poetry")]
    outcomes = await score_once(reward, [Sample(text, {"task_name": task}) for text, task in rows])
    assert outcomes == [
        Score(1.0, {"maths": 1.0}),
        Score(-1.0, {"maths": -1.0}),
        Score(1.0, {"code": 1.0}),
        Score(-1.0, {"code": -1.0}),
        NotApplicable(),
    ]


async def test_a_completion_that_lacks_what_one_grader_reads_keeps_what_the_others_gave() -> None:
    reads = check("a", "{{ item.word }}") | {"input": "{{ sample.output_json.x }}"}
    reward = build(multi({"word": reads, "mark": check("m", "!")}, "word + 0.5 * mark"))
    (outcome,) = await reward.score([Sample("no json!", {"word": "yes"})])
    assert isinstance(outcome, Score)
    assert (outcome.value, outcome.components) == (0.5, {"word": 0.0, "mark": 1.0})
    assert outcome.sample_fault.startswith("grader 'word': there is no 'sample.output_json.x'")


async def test_components_of_components_keep_their_graders_name() -> None:
    reward = combined("a", a=Fixed(Score(0.5, {"form": 0.25, "sum": 0.25})))
    assert await reward.score([Sample("x")]) == [Score(0.5, {"a": 0.5, "a.form": 0.25, "a.sum": 0.25})]


async def test_graders_score_at_once() -> None:
    meeting = asyncio.Barrier(3)
    (outcome,) = await combined("a + b + c", **{name: Fixed(Score(1.0), meeting) for name in "abc"}).score(
        [Sample("x")]
    )
    assert outcome == Score(3.0, {"a": 1.0, "b": 1.0, "c": 1.0})


async def test_where_one_cannot_start_the_others_are_closed() -> None:
    good, bad = Fixed(Score(1.0)), Fixed(Score(1.0), fault=InvalidRequest("no file", param="grader.function"))
    with pytest.raises(InvalidRequest, match="grader 'b': no file") as fault:
        await combined("a + b", a=good, b=bad).start()
    assert fault.value.param == "grader.graders.b.function"
    assert good.life == ["start", "close"]


async def test_a_users_function_inside(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def length(completion): return len(completion)")
    function = {"type": "function", "name": "n", "function": f"{tmp_path}/user.py:length", "timeout": 10}
    reward = build(multi({"n": function, "inner": multi([check("mark", "!")], "1 - mark")}, "log(n) * inner"))
    scored, failed = await score_once(reward, [Sample("x"), Sample("")])
    assert scored == Score(0.0, {"n": 1.0, "inner": 1.0, "inner.mark": 0.0})
    assert failed == Failure("invalid_value", "'log(n)', of 0: math domain error")


@pytest.mark.parametrize("graders", [[check("mark", "!")], check("mark", "!")])
def test_a_list_or_one_grader_becomes_a_map(graders: Any) -> None:
    complete = validate(multi(graders, "mark")).model_dump()
    assert complete["graders"] == {"mark": check("mark", "!")}
    assert validate(complete).model_dump() == complete


@pytest.mark.parametrize(
    ("graders", "formula", "param", "message"),
    [
        ([check("a", "!"), check("a", "?")], "a", "graders", "two graders are called 'a'"),
        ({"a-b": check("a", "!")}, "a", "graders", "cannot name the grader 'a-b'"),
        ({"max": check("a", "!")}, "max", "graders", "cannot name the grader 'max'"),
        ({}, "1", "graders", "at least 1 item"),
        ({f"a{i}": check("a", "!") for i in range(MAX_GRADERS + 1)}, "a1", "graders", "at most"),
        ("a", "a", "graders", "dictionary"),
        ({"a": 1}, "a", "graders.a", "an object with a 'type'"),
        ({"a": {**check("a", "!"), "operation": "about"}}, "a", "graders.a", "'ilike'"),
        ({"a": check("a", "!")}, "a + b", "calculate_output", "no grader 'b'"),
    ],
)
def test_a_wrong_description_names_the_field(graders: Any, formula: str, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as fault:
        validate(multi(graders, formula))
    assert fault.value.param == f"grader.{param}"
