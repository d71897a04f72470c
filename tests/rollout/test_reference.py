"""Where answers open, in the shipped adder's tokenizer, whose tokens `<answer`, `>` and ` 9` end and begin there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace_core.storage.dataset import Row
from headrace_lab.paths import ADDER
from headrace_rewards.graders.verifier_free.base import LikelihoodSpec
from headrace_rewards.registry import validate
from headrace_rollout.prompts import Tokenizer
from headrace_rollout.reference_answers import ReferenceAnswers

ROW = Row([], {"answer": "93"})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(ADDER / "model")


def answers(tokenizer: Tokenizer, **fields: Any) -> ReferenceAnswers:
    spec = validate({"type": "verifree", "name": "v", **fields})
    assert isinstance(spec, LikelihoodSpec)
    return ReferenceAnswers(tokenizer, spec, [])


def spelled(tokenizer: Tokenizer, *pieces: str) -> npt.NDArray[np.int32]:
    """Each piece encoded alone: also as no tokenizer would cut the whole."""
    return np.concatenate([tokenizer.encode(piece) for piece in pieces])


@pytest.mark.parametrize(
    ("fields", "pieces", "answer", "stable"),
    [
        pytest.param({}, ["so", " <answer", "> 41 </answer>"], "> 93 </answer>", True, id="as a tokenizer cuts"),
        pytest.param({}, ["so <answer> 1", " <answer> 2"], "> 93 </answer>", True, id="the first opening"),
        pytest.param({}, [*"so <answer", "> 41"], "> 93 </answer>", True, id="sampled letter by letter"),
        pytest.param({}, ["a <answers> 41"], "> 93 </answer>", True, id="a longer word"),
        pytest.param(
            {"opening": "<answe", "reference": "r> {{ item.answer }}"}, ["so <answer> 4"], "> 93", True,
            id="the last token holds a part of the reference",
        ),
        pytest.param(
            {"opening": "<answe"}, ["so <answer> 4"], "> 93 </answer>", False, id="the last token holds something else"
        ),
        pytest.param(
            {"opening": "<answer> ", "reference": "{{ item.answer }} </answer>"}, ["so <answer>", " ", "4"],
            "93 </answer>", False, id="the tokenizer would join the space and the answer",
        ),
        pytest.param(
            {"opening": "<answer>", "reference": " {{ item.answer }} </answer>"}, ["so <answer>", " ", "4"],
            " 93 </answer>", True, id="the space is the reference's",
        ),
    ],
)  # fmt: skip
def test_an_answer_opens_behind_the_token_that_completes_the_opening(
    tokenizer: Tokenizer, fields: dict[str, str], pieces: list[str], answer: str, stable: bool
) -> None:
    opening = fields.get("opening", "<answer")
    sampled = spelled(tokenizer, *pieces)
    opened = answers(tokenizer, **fields).open(sampled, ROW)
    assert opened is not None
    found, before = (tokenizer.exact_text(sampled[:n]) for n in (opened.reasoning, opened.reasoning - 1))
    assert opening in found
    assert opening not in before
    np.testing.assert_array_equal(opened.answer, tokenizer.encode(answer))
    assert opened.stable == stable


def test_no_answer_is_opened(tokenizer: Tokenizer) -> None:
    for text in ("so 93", "<answe", "< answer> 93"):
        assert answers(tokenizer).open(tokenizer.encode(text), ROW) is None
    assert answers(tokenizer, opening="<end>").open(tokenizer.encode("<answer"), ROW) is None


def test_an_opening_may_be_a_special_token(tokenizer: Tokenizer) -> None:
    sampled = tokenizer.encode("so<|end|> 41")
    opened = answers(tokenizer, opening="<|end|>", reference=" {{ item.answer }}").open(sampled, ROW)
    assert opened is not None
    assert tokenizer.exact_text(sampled[: opened.reasoning]) == "so<|end|>"
    assert opened.stable
