"""`math_verify`, in its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_lab.rewards import started
from headrace_rewards.protocol import Reward, Sample
from headrace_rewards.registry import build

GRADER = {"type": "math_verify", "name": "maths", "timeout": 1.5}
BOMB = "The answer is $9^{9^{9^{9}}} - 9^{9^{9}}$"
"""More digits than any memory holds: no signal ends the operation."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def maths() -> AsyncIterator[Reward]:
    reward = build(GRADER)
    async with started(reward):
        yield reward


def values(outcomes: list[Outcome]) -> list[float | str]:
    return [o.value if isinstance(o, Score) else getattr(o, "kind", "none") for o in outcomes]


@pytest.mark.asyncio(loop_scope="module")
async def test_one_where_the_answers_are_equal(maths: Reward) -> None:
    texts = [r"so $\boxed{\frac{3}{4}}$.", "It is 0.75", "3/4", r"\boxed{\frac{4}{3}}", "I do not know", ""]
    outcomes = await maths.score([Sample(text, {"answer": r"\frac{3}{4}"}) for text in texts])
    assert values(outcomes) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_without_a_readable_reference_failed(maths: Reward) -> None:
    missing, unreadable, good = await maths.score(
        [Sample("5", {}), Sample("5", {"answer": "???"}), Sample("5", {"answer": 5})]
    )
    assert isinstance(missing, Failure)
    assert missing.kind == "bad_input"
    assert unreadable == Failure("bad_input", "math-verify finds no mathematics in the reference '???'")
    assert good == Score(1.0)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.slow
async def test_a_completion_that_never_ends_fails_alone(maths: Reward) -> None:
    outcomes = await maths.score([Sample(text, {"answer": "5"}) for text in ("5", BOMB, "6")])
    assert values(outcomes)[::2] == [1.0, 0.0]
    assert values(outcomes)[1] in ("timeout", "crashed")


async def test_templates_say_where_answer_and_reference_are() -> None:
    reward = build(
        GRADER
        | {"input": "{{ sample.output_json.result }}", "reference": "${{ item.a }} + {{ item.b }}$", "workers": 2}
    )
    await reward.start()
    try:
        assert values(
            await reward.score([Sample('{"result": "7"}', {"a": 3, "b": 4}), Sample("7", {"a": 3, "b": 4})])
        ) == [
            1.0,
            0.0,
        ]
    finally:
        await reward.close()


def test_a_template_that_cannot_be_right_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"grader\.reference"):
        build(GRADER | {"reference": "{{ answer }}"})
