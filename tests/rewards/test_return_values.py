"""What a user's function may return, and what is refused."""

from __future__ import annotations

import itertools
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_rewards.user_code.return_values import to_outcome, to_outcomes


def described(value: Any) -> str:
    """Its `repr` without its address: the name of a test is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Decimal("0.5"), Fraction(1, 2), {"score": 0.5}]
)
def test_numbers(value: Any) -> None:
    outcome = to_outcome(value)
    assert isinstance(outcome, Score)
    assert outcome.value == 0.5


def test_bool_int_and_none() -> None:
    assert [to_outcome(value) for value in (True, False, 3, None)] == [
        Score(1.0),
        Score(0.0),
        Score(3.0),
        NotApplicable(),
    ]


def test_dicts() -> None:
    assert to_outcome({"format": 0.25, "answer": True}) == Score(1.25, {"format": 0.25, "answer": 1.0})
    assert to_outcome({"score": 0.1, "length": 9}) == Score(0.1, {"score": 0.1, "length": 9.0})
    assert to_outcome({"overall": 0.9, "format": 1.0, "accuracy": 0.8}) == Score(
        0.9, {"overall": 0.9, "format": 1.0, "accuracy": 0.8}
    )
    assert to_outcome({"reward": 0.2, "pred": "x", "note": None}) == Score(0.2, {"reward": 0.2}, notes={"pred": "x"})


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        "1.0",
        b"1",
        1j,
        [1.0],
        object(),
        np.array([0.5, 0.5]),
        torch.tensor([0.1, 0.2]),
        {},
        {"a": math.nan},
        {"score": None},
        {"score": 1.0, "other": math.nan},
        {"a": "text"},
        {"a": 1e308, "b": 1e308},
        1e308,
        -1.01e15,
        {"score": 1.0, "other": 1e16},
        {"a": 1e15, "b": 1e15},
    ],
    ids=described,
)
def test_refused(value: Any) -> None:
    outcome = to_outcome(value)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "invalid_value"
    assert outcome.message


def test_lists_are_read_one_by_one() -> None:
    outcomes = to_outcomes([1, None, math.nan, {"a": 2}], 4)
    assert outcomes[0] == Score(1.0)
    assert outcomes[1] == NotApplicable()
    assert isinstance(outcomes[2], Failure)
    assert outcomes[3] == Score(2.0, {"a": 2.0})
    assert to_outcomes(torch.tensor([0.5, 1.0]), 2) == [Score(0.5), Score(1.0)]
    assert to_outcomes(None, 2) == [NotApplicable(), NotApplicable()]


@pytest.mark.parametrize("value", [(1, 2), {1: 0.0, 2: 0.0}.keys(), map(int, "12"), np.array([1, 2])], ids=described)
def test_whatever_can_be_iterated_is_a_list(value: Any) -> None:
    assert to_outcomes(value, 2) == [Score(1.0), Score(2.0)]


@pytest.mark.parametrize(
    "value",
    [
        [1.0],
        [1.0, 1.0, 1.0],
        1.0,
        "ab",
        b"ab",
        {"a": 1},
        itertools.count(),
        iter([1]),
        {"rewards": [1.0]},
        {"rewards": 1},
    ],
    ids=described,
)
def test_a_list_of_another_length_fails_every_sample(value: Any) -> None:
    outcomes = to_outcomes(value, 2)
    assert [type(outcome) for outcome in outcomes] == [Failure, Failure]


def test_openrlhf_returns_columns() -> None:
    assert to_outcomes({"rewards": torch.tensor([0.5, 1.0])}, 2) == [Score(0.5), Score(1.0)]
    logged = {
        "rewards": [0.5, None, math.nan],
        "scores": torch.tensor([0.0, 1.0, 1.0]),
        "extra_logs": {
            "score": [9, 9, 9],
            "length": np.array([3, 4, 5]),
            "mean": torch.tensor(0.25),
            "texts": ["a", "b", "c"],
            "of another batch": [1, 2],
        },
    }
    first, second, third = to_outcomes(logged, 3)
    assert first == Score(0.5, {"score": 0.5, "scores": 0.0, "length": 3.0, "mean": 0.25}, notes={"texts": "a"})
    assert second == NotApplicable()
    assert isinstance(third, Failure)


def test_a_failure_names_who_returned_it() -> None:
    outcome = to_outcome("x", "the endpoint")
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith("the endpoint returned 'x'")


_SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(deadline=None, derandomize=True)
@given(_SCALAR | st.dictionaries(st.text(), _SCALAR) | st.lists(_SCALAR))
def test_every_value_has_an_outcome_and_every_score_is_finite(value: Any) -> None:
    outcome = to_outcome(value)
    assert isinstance(outcome, Score | NotApplicable | Failure)
    if isinstance(outcome, Score):
        assert all(map(math.isfinite, (outcome.value, *outcome.components.values())))


def test_a_score_that_is_not_finite_cannot_come_over_a_wire() -> None:
    for text in (b'{"type":"score","value":1e999}', b'{"type":"score","value":null}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=Outcome)
    with pytest.raises(ValueError, match="finite"):
        Score(math.nan)
