"""Completions of a row that a model might write, for a grader to be tried on before a job starts.

Three groups, each scored together as a group of a job is: nothing at all, a right answer and a wrong one, and the right
answer in the forms that rewards usually look for (JSON, tags, a box, GSM8K's mark). A grader that fails on every one of
them, always alike, does not fail because of what the model wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace_core.storage.dataset import Row

REFERENCE_KEYS = (
    *("answer", "ground_truth", "reference_answer", "label", "solution", "target", "reference", "expected_output"),
    *("expected", "completion", "response"),
)
"""Where rows keep the right answer, the most usual first; before them verl's `reward_model.ground_truth`."""
_WITHOUT_REFERENCE = "42"
_LONGEST = 20_000
"""Characters of a reference answer that are tried."""


def plausible_completions(row: Row) -> list[list[dict[str, Any]]]:
    """Groups of samples, as the rewards service takes them."""
    right = _reference(row.item)
    formatted = (
        f"<think>\nLet me see.\n</think>\n<answer>{right}</answer>\nThe answer is \\boxed{{{right}}}.\n#### {right}"
    )
    groups = [["", ""], [right, "I do not know."], [msgspec.json.encode({"answer": right}).decode(), formatted]]
    return [[sample(row, text) for text in texts] for texts in groups]


def sample(row: Row, text: str) -> dict[str, Any]:
    """A completion of a row, as the rewards service takes it."""
    return {"output_text": text, "item": row.item, "messages": row.messages}


def _reference(item: Mapping[str, Any]) -> str:
    nested = item.get("reward_model")
    known = {**item, **nested} if isinstance(nested, Mapping) and "ground_truth" in nested else item
    keys = ("ground_truth", *REFERENCE_KEYS) if known is not item else REFERENCE_KEYS
    value = next((known[key] for key in keys if known.get(key) not in (None, "", [], {})), _WITHOUT_REFERENCE)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text[:_LONGEST]
