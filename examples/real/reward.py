"""The reward of the real example: reasoning-gym's own verifier, on the last number that the completion writes.

A grader in the OpenAI form. Its process imports reasoning-gym, which takes up to ten seconds.
"""

from __future__ import annotations

import re
from typing import Any

from sums import verify

NUMBER = re.compile(r"-?\d+")


def score(sample: dict[str, Any], item: dict[str, Any]) -> dict[str, float]:
    """`score`, the reward: the verifier's, 0.0 for a completion without a number.

    `correct`, to look at: 1.0 where the last number is the answer. The verifier gives part of the reward to a number
    that contains the answer ("13" for "3": 0.5), so `score` is the larger of the two.
    """
    numbers = NUMBER.findall(sample["output_text"])
    answer = numbers[-1] if numbers else None
    return {"score": verify(answer, item), "correct": float(answer == item["answer"])}
