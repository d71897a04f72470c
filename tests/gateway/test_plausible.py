"""Completions that a grader is tried on hold the row's right answer, wherever the row keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_core.storage.dataset import Row
from headrace_gateway.grading.plausible_completions import plausible_completions


@pytest.mark.parametrize(
    ("item", "right"),
    [
        ({"answer": "93"}, "93"),
        ({"answer": 93}, "93"),
        ({"answer": ["a", 1]}, '["a",1]'),
        ({"answer": "", "solution": "x"}, "x"),
        ({"label": "spam", "text": "…"}, "spam"),
        ({"answer": "1", "reward_model": {"ground_truth": "2", "style": "rule"}}, "2"),
        ({"question": "?"}, "42"),
        ({"answer": "a" * 100_000}, "a" * 20_000),
    ],
)
def test_the_right_answer_is_found(item: dict[str, Any], right: str) -> None:
    messages = [{"role": "user", "content": "?"}]
    row = Row.of({"messages": messages, **item})
    empty, plain, formatted = plausible_completions(row)
    assert [sample["output_text"] for sample in empty] == ["", ""]
    assert plain[0]["output_text"] == right
    assert all(
        right.replace('"', '\\"') in sample["output_text"] or right in sample["output_text"] for sample in formatted
    )
    assert (plain[0]["item"], plain[0]["messages"]) == (row.item, messages)
