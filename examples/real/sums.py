"""The task: reasoning-gym's `chain_sum` with two one-digit numbers. The one file that imports reasoning-gym.

It generates and it judges: `questions` draws problems, `verify` is the library's own verifier. There are 200 problems
(two operands from 0 to 9, plus or minus).
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # Of cellpylib, which another task of reasoning-gym needs; raised when Python first compiles it.
    warnings.simplefilter("ignore", SyntaxWarning)
    import reasoning_gym

_TASK = "chain_sum"
_SIZES = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
_DRAWN = 2000
"""Draws in which nearly every one of the 200 problems comes up."""

_score_answer: Any = reasoning_gym.get_score_answer_fn(_TASK)


def questions(seed: int) -> dict[str, str]:
    """Question → answer, of every problem drawn, in the order of the text."""
    drawn = reasoning_gym.create_dataset(_TASK, size=_DRAWN, seed=seed, **_SIZES)
    return dict(sorted((entry["question"], entry["answer"]) for entry in drawn))


def verify(answer: str | None, item: dict[str, Any]) -> float:
    """1.0 for `item["answer"]`; its share of the characters where `answer` merely contains it; else 0.0."""
    return float(_score_answer(answer, item))
