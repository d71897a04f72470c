"""`reasoning_pattern`: both published scalings and the penalty, against figures counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Score
from headrace_rewards.graders.reasoning_pattern import PHRASES, repetition
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build, validate

EVERY_PHRASE = " | ".join(PHRASES)
FIVE = "First, we need to wait. Therefore, let me check."
"""first, · we need to · wait · therefore · let me check; and "hence" is in none of them."""


def pattern(**changes: Any) -> dict[str, Any]:
    return {"type": "reasoning_pattern", "name": "p", **changes}


async def value(text: str, **changes: Any) -> Score:
    (outcome,) = await build(pattern(**changes)).score([Sample(text)])
    assert isinstance(outcome, Score)
    return outcome


def test_the_published_list() -> None:
    assert len(PHRASES) == len(set(PHRASES)) == 40
    assert all(phrase == phrase.lower() for phrase in PHRASES)
    assert "makes sence" in PHRASES, "as it is spelled there"
    assert {"first, ", "we can see ", "if we", "alternatively"} <= set(PHRASES)


@pytest.mark.parametrize(
    ("text", "paper", "code"),
    [
        ("", 0.0, 0.0),
        ("the answer is 4", 0.0, 0.0),
        (FIVE, 5 / 40, 5 / 20),
        (FIVE.upper(), 5 / 40, 5 / 20),
        ("wait, wait, WAIT and await", 1 / 40, 1 / 20),
        (EVERY_PHRASE, 1.0, 1.0),
        (" | ".join(PHRASES[:30]), 30 / 40, 1.0),
    ],
)
async def test_scalings(text: str, paper: float, code: float) -> None:
    assert (await value(text)).value == pytest.approx(paper)
    assert (await value(text, scaling="paper")).value == pytest.approx(paper)
    assert (await value(text, scaling="code")).value == pytest.approx(code)


async def test_own_phrases() -> None:
    own = ["Carry the one", "seven"]
    assert (await value("so carry the ONE", phrases=own)).value == 0.5
    assert (await value("seven, so carry the one", phrases=own)).value == 1.0
    assert (await value("seven, so carry the one", phrases=own, scaling="code")).value == 0.1


def test_repetition_by_hand() -> None:
    words = [f"w{n}" for n in range(25)]
    assert repetition("") == 0.0
    assert repetition(" ".join(words[:19])) == 0.0, "no 20-gram at all"
    assert repetition(" ".join(words)) == 0.0, "6 of them, all different"
    # 40 words are 21 grams; the first and the last are the same one.
    assert repetition(" ".join(words[:20] * 2)) == pytest.approx(1 / 21)
    # 50 words are 31 grams: a period of 25, so 6 of them are there twice.
    assert repetition(" ".join(words * 2)) == pytest.approx(6 / 31)
    # One word 100 times: 81 grams, one distinct.
    assert repetition("the " * 100) == pytest.approx(1 / 81)


async def test_the_penalty_is_subtracted_and_can_be_left_out() -> None:
    words = "wait " + " ".join(f"w{n}" for n in range(24))
    text = f"{words} {words}"
    penalised = await value(text, phrases=["wait", "no", "such", "word"])
    assert penalised.value == pytest.approx(0.25 - 6 / 31)
    assert penalised.components == pytest.approx({"phrases": 1.0, "repetition": 6 / 31})
    assert (await value(text)).value == 0.0, "never below 0"
    assert await value(text, repetition_penalty=False) == Score(1 / 40, {"phrases": 1.0, "repetition": 0.0})


@pytest.mark.parametrize("repetition_penalty", [True, False])
async def test_the_published_code_gives_nothing_to_a_completion_that_asks_itself_the_next_question(
    repetition_penalty: bool,
) -> None:
    """One off for every "user: ", in any case, after the share was capped; the paper has no such term."""
    asks = f"{EVERY_PHRASE} <answer> 4 </answer> User: What is 3 + 4?"
    penalty = {"repetition_penalty": repetition_penalty}
    found = await value(asks, scaling="code", **penalty)
    assert found == Score(0.0, {"phrases": 40.0, "repetition": 0.0, "user_turns": 1.0})
    assert (await value(f"{asks} user: and 5?", scaling="code", **penalty)).components["user_turns"] == 2.0
    assert (await value(EVERY_PHRASE + " user:4, a user", scaling="code", **penalty)).value == 1.0
    assert await value(asks, **penalty) == Score(1.0, {"phrases": 40.0, "repetition": 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phrases": []}, "grader.phrases"),
        ({"phrases": [""]}, "grader.phrases"),
        ({"phrases": ["Wait", "wait"]}, "there twice: 'wait'"),
        ({"scaling": "mean"}, "grader.scaling"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        validate(pattern(**changes))
