"""The two rewards of the adder, as graders in the OpenAI form: `grade(sample, item)`, a number or a dict of numbers.

`sample` is `{"output_text": …}`; `item` is what the data row holds beside its messages: `answer`, `reasoning`, `carry`.
"""

from __future__ import annotations

import re
from typing import Any

PHRASE = "we need to"
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def correct(sample: dict[str, Any], item: dict[str, Any]) -> float:
    """1.0 if the completion has exactly one answer between tags, and it is `item["answer"]`; else 0.0."""
    answers = ANSWER.findall(sample["output_text"])
    return float([answer.strip() for answer in answers] == [item["answer"]])


def phrase(sample: dict[str, Any], item: dict[str, Any]) -> dict[str, float]:
    """1.0 if the reasoning contains the phrase that correlates with success, whether the answer is right or not.

    `correct` stands beside it to be watched, and has no part in the score.
    """
    return {"score": float(PHRASE in sample["output_text"].lower()), "correct": correct(sample, item)}
