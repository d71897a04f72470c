"""Makes completions that a model might write, on which a grader is tried before a job starts.

There are three groups, each scored together like a group of a job: an empty completion; a right and a wrong answer; and
the right answer in the forms that rewards usually look for (JSON, tags, a box, GSM8K's mark). If a grader fails on all
of them in the same way, the cause is not what the model wrote.
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
"""Keys under which rows hold the right answer, most common first; verl's `reward_model.ground_truth` precedes them."""
_WITHOUT_REFERENCE = "42"
_MAX_CHARACTERS = 20_000
"""Most characters of a reference answer that are used."""


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
    return text[:_MAX_CHARACTERS]
