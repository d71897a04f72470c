"""Finds the answer in a completion, and holds the sentence of the prompt that tells a model where to write it."""

from __future__ import annotations

from typing import Literal

Place = Literal["tag", "last_line", "whole"]

INSTRUCTIONS: dict[Place, str] = {
    "tag": "Write the final answer between <answer> and </answer>.",
    "last_line": "Write the final answer alone on the last line.",
    "whole": "",
}
"""The sentence that is appended to the question; empty where the whole completion is the answer."""

_OPEN, _CLOSE = "<answer>", "</answer>"


def answer_in(text: str, place: Place) -> str | None:
    """The answer, stripped of whitespace; `None` if there is none. Of several tags, the last closed one counts."""
    if place == "whole":
        answer = text
    elif place == "last_line":
        answer = text.strip().rpartition("\n")[2]
    else:
        before, closed, _ = text.rpartition(_CLOSE)
        _, opened, answer = before.rpartition(_OPEN)
        if not (opened and closed):
            return None
    return answer.strip() or None
